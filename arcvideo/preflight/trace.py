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
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from arcvideo.composing.compose import stage_config
from arcvideo.composing.config import RunConfig
from arcvideo.model import attention, plans
from arcvideo.model.attention import FlexPlan
from arcvideo.model.plans import kernel_of
from arcvideo.objectives.scores import forward_of, loss_of
from arcvideo.preflight.made import batch_of, drop_gradients, model_of, objective_of
from arcvideo.preflight.row import Row, fullest_row
from arcvideo.processes.command import as_command

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
        device = kwargs.get("device", META)
        kwargs = {name: value for name, value in kwargs.items() if name != "device"}
        result = func(*args, **kwargs)
        if torch.device(device) != META:
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

    def restart(self) -> int:
        """Return the peak so far; the next one counts from what is held now."""
        peak, self.peak = self.peak, self.now
        return peak

    def _free(self, size: int) -> None:
        self.now -= size


def _is_known(tensor: Tensor) -> bool:
    return not tensor.is_floating_point()


def _on_meta(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)


@torch.library.custom_op("arcvideo::_scaled_dot_product_traced", mutates_args=())
def traced_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output (..., Q, h) and log-sum-exp (..., Q) of a fused kernel, which is all that it holds."""
    raise NotImplementedError("for tracing on the meta device only")


@traced_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    # The kernels write their output as the queries lie, heads beside each other.
    return torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)


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


traced_attention.register_autograd(_backward, setup_context=_save)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let attention on meta take CUDA's kernels and hold what they hold: their output and one fp32 number a query.

    On meta torch would take the written-out formula, with every score and a copy of keys and values for each head.
    """
    ours = nn.functional.scaled_dot_product_attention

    def traced(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **more: Any) -> Tensor:
        return traced_attention(query, key, value)[0] if query.is_meta else ours(query, key, value, *arguments, **more)

    def branches(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        return traced_attention(query, key, value)[0]

    def documents(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **more: Any) -> Tensor:
        heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        return traced_attention(*heads_first)[0].squeeze(0).transpose(0, 1)

    def kernel(spans: Any, parents: Any, **keywords: Any) -> str:
        return kernel_of(spans, parents, **keywords | {"device": "cuda"})

    # Modes would not reach what checkpointing computes again in the backward.
    with (
        patch.object(nn.functional, "scaled_dot_product_attention", traced),
        patch.object(attention, "varlen_attn", documents),
        patch.object(plans, "kernel_of", kernel),
        patch.object(plans, "flex_plan", lambda segments, length: FlexPlan(None, branches, packed=True)),
    ):
        yield


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
    model = model_of(config, device=META)
    drop_gradients(model)
    batch = batch_of(config, row=row, device=META)
    held = Held()
    with held, fused_attention():
        moved = batch.to(META)
        total = loss_of(objective_of(config), moved, run=forward_of(model)).total
        after_forward = held.now
        total.backward()
    return Traced(tokens=batch.input_ids.numel(), peak=held.peak, held=after_forward, calls=held.calls)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the fullest row of a stage holds, or say why it cannot be traced."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config = stage_config(words)
        row = fullest_row(config)
        traced = trace_row(config, row=row)
    except ValueError as error:
        sys.exit(f"error: {error}")
    how = f"{config.runner.precision}, activation_checkpointing={config.model.activation_checkpointing}"
    print(
        f"{config.stage.name}: a row of {traced.tokens} tokens ({row.families} x {row.frames} frames, {row.targets} "
        f"targets each) holds {traced.peak / GIB:.1f} GiB above the weights at its peak and "
        f"{traced.held / GIB:.1f} GiB between forward and backward ({how})"
    )


if __name__ == "__main__":
    as_command(main)
