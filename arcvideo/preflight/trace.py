"""Trace a stage's real row at full shapes, without memory: `python -m arcvideo.preflight.trace stage=sft ...`.

Weights and activations are on torch's meta device, so nothing is computed and nothing is stored; ids, segments and
positions are real, because the model asks them for shapes. Every storage that an operator of forward or backward makes
is counted until it is freed, recomputation included: what a device would hold above the weights.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from arcvideo.compose import stage_config
from arcvideo.config import RunConfig
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.lora import add_adapters
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.special import default_ids
from arcvideo.objectives import load_objective
from arcvideo.runner.trainable import PREFIXES, train_only, trained_modules
from arcvideo.tasks import DEFAULT_TASK
from arcvideo.types import Batch, Media, Segments, model_inputs

META = torch.device("meta")
GIB = 1 << 30


class Held(TorchDispatchMode):
    """Counts the bytes of what operators make on the meta device while it is on; `peak` is the most at one time.

    An operator with a meta tensor among its inputs runs on meta; one with real inputs only runs for real. Integers that
    were moved to meta, and what is computed from them alone, are still known: ids have shapes and places to tell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.calls = 0, 0, 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._real: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self.calls += 1
        leaves, spec = tree_flatten((args, kwargs))
        metas = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_meta]
        if metas and all(leaf in self._real for leaf in metas):
            return self._really(func, leaves, spec)
        if metas:
            # What was there before (weights, inputs) is not counted, nor are views of it.
            self._seen.update(leaf.untyped_storage() for leaf in metas)
            leaves = [_on_meta(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        elif kwargs.get("device") == META and func is torch.ops.aten._to_copy.default and _is_known(args[0]):
            return self._known(args[0])
        args, kwargs = tree_unflatten(leaves, spec)
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._hold(leaf.untyped_storage())
        return result

    def _really(self, func: Any, leaves: list[Any], spec: Any) -> Any:
        """Run an operator on integers that are known; its result is known, too, on meta unless the CPU was asked."""
        args, kwargs = tree_unflatten(
            [self._real.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
        )
        asked = kwargs.get("device", META)
        kwargs = {name: value for name, value in kwargs.items() if name != "device"}
        result = func(*args, **kwargs)
        if torch.device(asked) != META:
            return result
        return tree_map_only(Tensor, lambda leaf: self._known(leaf) if _is_known(leaf) else _on_meta(leaf), result)

    def _known(self, real: Tensor) -> Tensor:
        traced = _on_meta(real)
        self._real[traced] = real
        self._hold(traced.untyped_storage())
        return traced

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def _is_known(tensor: Tensor) -> bool:
    return not tensor.is_floating_point()


def _on_meta(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)


@torch.library.custom_op("arcvideo::_scaled_dot_product_traced", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("for tracing on the meta device only")


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape[:-1] + v.shape[-1:]), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("arcvideo::_scaled_dot_product_traced_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError("for tracing on the meta device only")


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return _attention_backward(grad, *ctx.saved_tensors)


_attention.register_autograd(_backward, setup_context=_save)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let attention on meta hold what the fused kernels of a GPU hold: its output and one fp32 number a query.

    On meta torch would take the written-out formula, with every score and a copy of keys and values for each head.
    """
    ours = nn.functional.scaled_dot_product_attention

    def traced(query: Tensor, key: Tensor, value: Tensor, *words: Any, **more: Any) -> Tensor:
        return _attention(query, key, value)[0] if query.is_meta else ours(query, key, value, *words, **more)

    # A mode would not reach what checkpointing computes again in the backward.
    with patch.object(nn.functional, "scaled_dot_product_attention", traced):
        yield


@dataclass(frozen=True, kw_only=True)
class Row:
    """The shape of one packed row: families of a clip and what follows it."""

    frames: int
    """Pictures of the clip, one a second; 0 for text alone."""
    text: int
    """Tokens of the prompt behind the clip."""
    branches: tuple[int, ...]
    """Tokens of each continuation: answers of SFT, completions of a group, the two of a pair; none: the row is one
    segment, supervised at its end."""
    targets: int
    """Supervised tokens of a family, over all its continuations."""
    families: int = 1
    """How often all this stands in the row."""


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What one row takes."""

    tokens: int
    """Of the row."""
    peak: int
    """Most bytes above the weights at one time, without the weights' gradients."""
    held: int
    """Bytes held for the backward when the forward has ended."""
    calls: int
    """Operators called, views included."""


def trace_row(config: RunConfig, *, row: Row) -> Traced:
    """Trace forward and backward of one row of a stage, with its model, trained modules, precision and objective.

    Gradients of weights are dropped as they come, as ZeRO does; weights, optimizer and communication are not counted.
    """
    model = _model(config)
    batch = _batch(config, row=row)
    held = Held()
    with held, fused_attention():
        moved = batch.to(META)
        logits = model(**model_inputs(moved)).logits
        total = _objective(config)(logits, moved).total
        after_forward = held.now
        del logits
        total.backward()
    return Traced(tokens=batch.input_ids.numel(), peak=held.peak, held=after_forward, calls=held.calls)


def _model(config: RunConfig) -> ArcVideoForConditionalGeneration:
    settings = config.model
    if settings.text.vocab_size == 0:
        most = max(vars(default_ids(settings.family)).values())
        settings = replace(settings, text=replace(settings.text, vocab_size=most + 1))
    with META:
        model = ArcVideoForConditionalGeneration(
            ArcVideoConfig.from_settings(settings, special=default_ids(settings.family))
        )
    model.adopt(config.model)
    lora = config.lora
    if lora is not None:
        add_adapters(model, settings=lora, prefixes=[prefix for name in lora.modules for prefix in PREFIXES[name]])
    train_only(model, trained_modules(config.stage.train, adapted=lora.modules if lora else ()))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop)
    nn.Module.to(model, torch.bfloat16 if config.runner.precision == "bf16" else torch.float32)
    return model.train()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _objective(config: RunConfig) -> Any:
    return load_objective(config.stage.objective)(config.objective_settings, **config.stage.options)


def _batch(config: RunConfig, *, row: Row) -> Batch:
    """A row of that shape: ids, segments and positions are real, pictures and sound are on meta."""
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
    extra |= {name: torch.zeros(count) for name in ("old_logprobs", "ref_logprobs")}
    return Batch(
        input_ids=family.repeat(row.families),
        position_ids=torch.zeros(4, starts[-1], dtype=torch.int64),
        segments=Segments(starts=torch.tensor(starts, dtype=torch.int32), parents=torch.tensor(parents)),
        media=tuple(_media(config, frames=row.frames) for _ in range(row.families)) if row.frames else (),
        target_positions=places,
        target_ids=torch.zeros(count, dtype=torch.int64),
        target_weights=torch.ones(count),
        target_samples=torch.arange(len(ends)).repeat_interleave(each),
        keys=tuple(f"answer-{number}" for number in range(len(ends))),
        tasks=(DEFAULT_TASK,) * len(ends),
        extra=extra,
    )


def _media(config: RunConfig, *, frames: int) -> Media:
    vision, audio = config.model.vision, config.model.audio
    chunks = -(-frames * 50 // audio.max_source_positions)
    bare = Media(key="traced", frame_count=frames, seconds=frames, has_video=True, has_audio=True)
    if config.feature_cache:
        patches = (vision.force_image_size // vision.patch_size) ** 2
        return replace(
            bare,
            patches=torch.empty(config.layout.groups(frames), patches, vision.hidden_size, device=META),
            speech=torch.empty(chunks, audio.max_source_positions, audio.d_model, device=META),
        )
    side = vision.force_image_size
    return replace(
        bare,
        pixels=torch.empty(frames, 3, side, side, dtype=torch.uint8, device=META),
        mel=torch.empty(chunks, audio.num_mel_bins, 2 * audio.max_source_positions, device=META),
    )


def fullest_row(config: RunConfig, *, targets: float = 0.1) -> Row:
    """The row of a stage that holds most: as many frames as a clip may have, and the whole budget.

    Args:
        config: of the stage.
        targets: supervised tokens per token of a pack; a group's completions are supervised whole.
    """
    each, most = config.layout.tokens_per_frame, config.layout.max_frames
    budget = config.data.token_budget
    if config.objective.sampled:
        grpo = config.grpo
        answers = (grpo.max_completion_length,) * grpo.num_generations
        return Row(frames=most, text=ROOM, branches=answers, targets=sum(answers), families=grpo.prompts_per_batch)
    frames = max(min(most, (budget - 1 - ROOM) // each), 0)
    rest = budget - 1 - frames * each
    supervised = max(int(budget * targets), 1)
    if config.objective.paired:
        pair = (rest // 4, rest // 4)
        return Row(frames=frames, text=rest - sum(pair), branches=pair, targets=min(supervised, sum(pair)))
    return Row(frames=frames, text=rest, branches=(), targets=min(supervised, rest - 1))


ROOM = 256
"""Tokens that a question may take behind a clip of full length."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the fullest row of a stage holds, or say why it cannot be traced."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config = stage_config(words)
        row = fullest_row(config)
        found = trace_row(config, row=row)
    except ValueError as error:
        sys.exit(f"error: {error}")
    how = f"{config.runner.precision}, activation_checkpointing={config.model.activation_checkpointing}"
    print(
        f"{config.stage.name}: a row of {found.tokens} tokens ({row.families} x {row.frames} frames, {row.targets} "
        f"targets each) holds {found.peak / GIB:.1f} GiB above the weights at its peak and {found.held / GIB:.1f} GiB "
        f"between forward and backward ({how})"
    )


if __name__ == "__main__":
    main()
