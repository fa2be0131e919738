"""A stage's real row at full shapes, forward and backward, without memory: what the device would hold, counted.

Weights and activations are on torch's meta device, so nothing is computed and nothing is stored; ids, segments and
positions are real, because the model asks them for shapes. Every storage an operator makes is counted until it is
freed, recomputation included.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from arcvideo.config import RunConfig
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.lora import add_adapters
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.special import SpecialIds
from arcvideo.objectives import load_objective
from arcvideo.objectives.settings import NextTokenSettings
from arcvideo.runner.trainable import PREFIXES, train_only, trained_modules
from arcvideo.types import Batch, Media, Segments, model_inputs

META = torch.device("meta")


class Held(TorchDispatchMode):
    """Counts the bytes of what operators make on the meta device while it is on; `peak` is the most at one time.

    An operator with a meta tensor among its inputs runs on meta; one with real inputs only runs for real. Integers that
    were moved to meta are still known: whoever asks for them on the CPU again gets them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.calls = 0, 0, 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._real: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        moved = func is torch.ops.aten._to_copy.default
        if moved and args[0] in self._real and (kwargs or {}).get("device") != META:
            return func(self._real[args[0]], **(kwargs or {}))
        leaves, spec = tree_flatten((args, dict(kwargs or {})))
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
            # What was there before (weights, inputs) is not counted, nor are views of it.
            self._seen.update(leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_meta)
            leaves = [_on_meta(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(leaves, spec)
        result = func(*args, **kwargs)
        self.calls += 1
        if moved and result.is_meta and not result.is_floating_point() and not args[0].is_meta:
            self._real[result] = args[0]
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._hold(leaf.untyped_storage())
        return result

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
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
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
    """The shape of one packed row: a clip, then what follows it."""

    frames: int
    """Pictures of the clip, one a second; 0 for text alone."""
    text: int
    """Tokens of the prompt behind the clip."""
    branches: tuple[int, ...]
    """Tokens of each continuation: answers of SFT, completions of a group, the two of a pair; none: the row is one
    segment, supervised at its end."""
    targets: int
    """Supervised tokens, over all continuations."""


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
        logits = model(**model_inputs(batch)).logits
        total = _objective(config)(logits, batch.to(META)).total
        after_forward = held.now
        del logits
        total.backward()
    return Traced(tokens=batch.input_ids.numel(), peak=held.peak, held=after_forward, calls=held.calls)


def _model(config: RunConfig) -> ArcVideoForConditionalGeneration:
    settings = config.model
    if settings.text.vocab_size == 0:
        settings = replace(settings, text=replace(settings.text, vocab_size=max(vars(SpecialIds()).values()) + 1))
    with META:
        model = ArcVideoForConditionalGeneration(ArcVideoConfig.from_settings(settings, special=SpecialIds()))
    model.adopt(config.model)
    lora = config.lora
    if lora is not None:
        add_adapters(model, settings=lora, prefixes=[prefix for name in lora.modules for prefix in PREFIXES[name]])
    train_only(model, trained_modules(config.stage.train, adapted=lora.modules if lora else ()))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop)
    return model.to(torch.bfloat16 if config.runner.precision == "bf16" else torch.float32).train()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _objective(config: RunConfig) -> Any:
    name = config.stage.objective
    return load_objective(name)({"grpo": config.grpo, "dpo": config.dpo}.get(name, NextTokenSettings()))


def _batch(config: RunConfig, *, row: Row) -> Batch:
    """A row of that shape: ids, segments and positions are real, pictures and sound are on meta."""
    special, layout = SpecialIds(), config.layout
    media = (_media(config, frames=row.frames),) if row.frames else ()
    prompt = 1 + row.frames * layout.tokens_per_frame + row.text
    lengths = [prompt, *row.branches]
    ids = torch.zeros(sum(lengths), dtype=torch.int64)
    ids[1 : 1 + row.frames * layout.tokens_per_frame] = special.image
    samples = max(len(row.branches), 1)
    each = row.targets // samples
    starts = list(accumulate(lengths, initial=0))
    places = torch.cat([torch.arange(end - 1 - each, end - 1) for end in starts[-samples:]])
    count = len(places)
    extra = {"advantages": torch.zeros(samples)}
    extra |= {name: torch.zeros(count) for name in ("old_logprobs", "ref_logprobs")}
    return Batch(
        input_ids=ids,
        position_ids=torch.zeros(4, len(ids), dtype=torch.int64),
        segments=Segments(
            starts=torch.tensor(starts, dtype=torch.int32), parents=torch.tensor([-1] + [0] * len(row.branches))
        ),
        media=media,
        target_positions=places,
        target_ids=torch.zeros(count, dtype=torch.int64),
        target_weights=torch.ones(count),
        target_samples=torch.arange(samples).repeat_interleave(each),
        keys=tuple(f"branch-{number}" for number in range(samples)),
        tasks=("qa",) * samples,
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
            patches=torch.empty(frames, patches, vision.hidden_size, device=META),
            speech=torch.empty(chunks, audio.max_source_positions, audio.d_model, device=META),
        )
    side = vision.force_image_size
    return replace(
        bare,
        pixels=torch.empty(frames, 3, side, side, dtype=torch.uint8, device=META),
        mel=torch.empty(chunks, audio.num_mel_bins, 2 * audio.max_source_positions, device=META),
    )
