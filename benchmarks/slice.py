"""One training step of a depth slice of the 7B at its real widths: loss against CPU fp32, tokens/s, peak memory, MFU.

`make test-gpu` runs it after the tests that need a GPU; it writes benchmarks/results/slice.json. Depth is cut, widths
are not, so kernels, shapes and memory for each layer are those of the whole model. On a CPU it exits with a sentence.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from arcvideo.flops import peak_flops
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.positions import replace_newlines, video_ids, xd_positions
from arcvideo.model.settings import ModelSettings
from arcvideo.model.special import SpecialIds
from arcvideo.objectives.next_token import NextToken
from arcvideo.objectives.scores import loss_of
from arcvideo.processes.ranks import World, join
from arcvideo.runner.engine import Engine
from arcvideo.runner.settings import OptimizerSettings
from arcvideo.runner.trainable import train_only
from arcvideo.tracking.cost import useful_flops
from arcvideo.types import Batch, Media, Segments, model_inputs
from benchmarks.table import Row, report

TRAIN = ["llm", "vision_projector", "audio_projector"]
LAYERS = 4
FRAMES = 30
TEXT, TARGETS = 460, 400
TOLERANCE = 0.02
"""Relative difference of a bf16 loss to the fp32 one."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A step's figures."""

    loss: float
    grad_norm: float
    tokens: int
    seconds: float
    peak_gib: float
    flops: float


def slice_of(settings: ModelSettings, *, layers: int) -> ModelSettings:
    """The settings with at most `layers` layers in each of decoder and towers."""
    return replace(
        settings,
        text=replace(settings.text, num_hidden_layers=min(layers, settings.text.num_hidden_layers)),
        vision=replace(settings.vision, num_hidden_layers=min(layers, settings.vision.num_hidden_layers)),
        audio=replace(settings.audio, encoder_layers=min(layers, settings.audio.encoder_layers)),
    )


def model_of(settings: ModelSettings, *, special: SpecialIds) -> ArcVideoForConditionalGeneration:
    """Random weights, equal for equal settings; projectors and decoder learn."""
    torch.manual_seed(0)
    model = ArcVideoForConditionalGeneration(ArcVideoConfig.from_settings(settings, special=special))
    train_only(model, TRAIN)
    return model.eval()


def batch_of(settings: ModelSettings, *, special: SpecialIds, frames: int = FRAMES, text: int = TEXT) -> Batch:
    """A row with one clip of noise, a picture a second, and random text whose end is supervised."""
    generator = torch.Generator().manual_seed(1)
    side, audio = settings.vision.force_image_size, settings.audio
    chunks = -(-frames * 50 // audio.max_source_positions)
    media = Media(
        key="noise", frame_count=frames, seconds=frames, has_video=True, has_audio=True,
        pixels=torch.randint(0, 256, (frames, 3, side, side), generator=generator).to(torch.uint8),
        mel=torch.randn(chunks, audio.num_mel_bins, 2 * audio.max_source_positions, generator=generator),
    )  # fmt: skip
    words = torch.randint(0, min(vars(special).values()), (text,), generator=generator)
    grid = side // (4 * settings.vision.patch_size)
    ids = torch.cat([torch.tensor([special.start]), video_ids(grid, frames=frames, special=special), words])
    targets = min(TARGETS, text - 1)
    places = torch.arange(len(ids) - 1 - targets, len(ids) - 1)
    return Batch(
        input_ids=replace_newlines(ids, special=special),
        position_ids=xd_positions(ids, special),
        segments=Segments(
            starts=torch.tensor([0, len(ids)], dtype=torch.int32), parents=torch.tensor([-1], dtype=torch.int32)
        ),
        media=(media,),
        target_positions=places,
        target_ids=ids[places + 1],
        target_weights=torch.ones(targets),
        target_samples=torch.zeros(targets, dtype=torch.int64),
        keys=("noise",),
        tasks=("caption",),
    )


def reference_loss(model: ArcVideoForConditionalGeneration, batch: Batch) -> float:
    """Mean loss in fp32 on the CPU."""
    with torch.no_grad():
        loss = NextToken()(model(**model_inputs(batch)).logits, batch)
    return float(loss.total / batch.target_weights.sum())


def step_of(
    model: ArcVideoForConditionalGeneration, batch: Batch, *, world: World, engine: dict[str, Any], steps: int = 4
) -> Measured:
    """Train `steps` steps in bf16 on one row; the loss of the first, the time of the last."""
    running = Engine(
        model, world=world, settings=engine, precision="bf16", optimizer=OptimizerSettings(lr=1e-5), clip_norm=1.0
    )
    cuda = world.device.type == "cuda"
    flops = useful_flops(batch, settings=model.settings, trained=TRAIN)
    batch = batch.to(world.device)
    first, norm, seconds = float("nan"), float("nan"), float("nan")
    for number in range(steps):
        began = time.perf_counter()
        total = loss_of(NextToken(), batch, run=running).total / batch.target_weights.sum()
        running.backward(total, last=True)
        outcome = running.step()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        if number == 0:
            first, norm = float(total.detach()), outcome.grad_norm
    peak = torch.cuda.max_memory_allocated() / (1 << 30) if cuda else 0.0
    return Measured(
        loss=first, grad_norm=norm, tokens=batch.input_ids.numel(), seconds=seconds, peak_gib=peak, flops=flops
    )


def main() -> int:
    """Measure on a GPU and write the results."""
    if not torch.cuda.is_available():
        print("benchmarks.slice needs a CUDA device; nothing is measured")
        return 0
    world, special = join(), SpecialIds()
    settings = slice_of(ModelSettings(), layers=LAYERS)
    batch = batch_of(settings, special=special)
    expected = reference_loss(model_of(settings, special=special), batch)
    rows = []
    for stage in (0, 1, 2, 3):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        keys = {"zero_optimization": {"stage": stage}}
        found = step_of(model_of(settings, special=special), batch, world=world, engine=keys)
        peak = peak_flops(torch.cuda.get_device_name())
        share = found.flops / found.seconds / peak if peak else 0.0
        gap = abs(found.loss - expected) / expected
        rows.append(
            Row(metric=f"ZeRO {stage}: bf16 loss against CPU fp32 ({found.tokens / found.seconds:,.0f} tokens/s, "
                f"MFU {100 * share:.1f} %, peak {found.peak_gib:.1f} GiB)",
                ours=found.loss, baseline=expected, ratio=TOLERANCE / max(gap, 1e-9), target=1.0,
                equal=gap <= TOLERANCE)
        )  # fmt: skip
    notes = [
        f"{torch.cuda.get_device_name()}; {LAYERS} layers of each tower and of the decoder at released widths; a row "
        f"of {len(batch.input_ids)} tokens with {FRAMES} frames and their sound; one rank; the fourth step is timed",
        "MFU: useful FLOPs (forward, and backward of what trains) over the peak of the device",
    ]
    return report("slice", rows, notes=notes)


if __name__ == "__main__":
    raise SystemExit(main())
