"""A stage's model and its fullest row made from settings: what preflight traces, and runs before there are weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from arcvideo.composing.config import RunConfig
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.lora import add_adapters
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.special import default_ids
from arcvideo.objectives import load_objective
from arcvideo.preflight.memory import towers_ahead
from arcvideo.preflight.row import Row
from arcvideo.runner.trainable import PREFIXES, train_only, trained_modules
from arcvideo.tasks import DEFAULT_TASK
from arcvideo.types import Batch, Media, Segments


def model_of(config: RunConfig, *, device: torch.device) -> ArcVideoForConditionalGeneration:
    """Return the model of a stage with what learns in it; its weights are small random numbers, or none on meta."""
    settings = config.model
    if settings.text.vocab_size == 0:
        most = max(vars(default_ids(settings.family)).values())
        settings = replace(settings, text=replace(settings.text, vocab_size=most + 1))
    special = default_ids(settings.family)
    with torch.device("meta"):
        model = ArcVideoForConditionalGeneration(ArcVideoConfig.from_settings(settings, special=special))
    # A trace counts operators; compiled chains hold no more than they do.
    model.adopt(replace(config.model, compile="none") if device.type == "meta" else config.model)
    lora = config.lora
    if lora is not None:
        add_adapters(model, settings=lora, prefixes=[prefix for name in lora.modules for prefix in PREFIXES[name]])
    train_only(model, trained_modules(config.stage.train, adapted=lora.modules if lora else ()))
    nn.Module.to(model, torch.bfloat16 if config.runner.precision == "bf16" else torch.float32)
    if device.type != "meta":
        nn.Module.to_empty(model, device=device)
        model.tie_weights()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.02)
    return model.train()


def drop_gradients(model: nn.Module) -> None:
    """Let gradients of weights go as they come, as ZeRO does."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def objective_of(config: RunConfig) -> Any:
    """Return the objective of a stage."""
    return load_objective(config.stage.objective)(config.objective_settings, **config.stage.options)


def batch_of(config: RunConfig, *, row: Row, device: torch.device) -> Batch:
    """Return a row of that shape: ids, segments and positions are on the CPU, pictures and sound on `device`."""
    special, pictures = default_ids(config.model.family), config.layout.placeholders(row.frames)
    prompt = torch.zeros(1 + pictures + row.text, dtype=torch.int64)
    prompt[1 : 1 + pictures] = special.image
    lengths = [len(prompt), *row.branches] * row.families
    starts = list(accumulate(lengths, initial=0))
    answers = max(len(row.branches), 1)
    each = row.targets // answers
    # Continuations end every segment but a family's first; without any, the prompt itself is supervised at its end.
    stride = len(row.branches) + 1
    ends = [end for place, end in enumerate(starts[1:]) if not row.branches or place % stride]
    places = torch.cat([torch.arange(end - 1 - each, end - 1) for end in ends])
    family = torch.cat([prompt, torch.zeros(sum(row.branches), dtype=torch.int64)])
    parents = [-1 if place % stride == 0 else place - place % stride for place in range(len(lengths))]
    count = len(places)
    extra = {"advantages": torch.zeros(len(ends))}
    clip: dict[str, Any] = {"frames": row.frames, "device": device, "ahead": towers_ahead(config)}
    extra |= {name: torch.zeros(count) for name in ("old_logprobs", "ref_logprobs")}
    return Batch(
        input_ids=family.repeat(row.families),
        position_ids=torch.zeros(4, starts[-1], dtype=torch.int64),
        segments=Segments(starts=torch.tensor(starts, dtype=torch.int32), parents=torch.tensor(parents)),
        media=tuple(media_of(config, **clip) for _ in range(row.families if row.frames else 0)),
        target_positions=places,
        target_ids=torch.zeros(count, dtype=torch.int64),
        target_weights=torch.ones(count),
        target_samples=torch.arange(len(ends)).repeat_interleave(each),
        keys=tuple(f"answer-{number}" for number in range(len(ends))),
        tasks=(DEFAULT_TASK,) * len(ends),
        extra=extra,
    )


def media_of(config: RunConfig, *, frames: int, device: torch.device, ahead: bool = False) -> Media:
    """Return a clip of so many frames on `device`, with tower outputs where the stage stores them.

    Args:
        config: of the stage.
        frames: at least one.
        device: of the tensors.
        ahead: the clip has been through the towers, which gave their outputs in the model's precision.
    """
    vision, audio = config.model.vision, config.model.audio
    chunks = -(-frames * 50 // audio.max_source_positions)
    bare = Media(key="traced", frame_count=frames, seconds=frames, has_video=True, has_audio=True)
    if config.feature_cache or ahead:
        dtype = torch.bfloat16 if ahead and config.runner.precision == "bf16" else torch.float32
        patches = (vision.force_image_size // vision.patch_size) ** 2
        return replace(
            bare,
            patches=torch.zeros(config.layout.groups(frames), patches, vision.hidden_size, device=device, dtype=dtype),
            speech=torch.zeros(chunks, audio.max_source_positions, audio.d_model, device=device, dtype=dtype),
        )
    side = vision.force_image_size
    return replace(
        bare,
        pixels=torch.zeros(frames, 3, side, side, dtype=torch.uint8, device=device),
        mel=torch.zeros(chunks, audio.num_mel_bins, 2 * audio.max_source_positions, device=device),
    )
