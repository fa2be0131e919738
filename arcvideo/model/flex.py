"""FlexAttention: the rules of `plans.py` as a block mask of one compiled kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from arcvideo.model.attention import FlexPlan
from arcvideo.types import Segments


def flex_plan(segments: Segments, *, length: int) -> FlexPlan:
    """Return the FlexAttention form of the rule; no row is without keys, as every token sees itself."""
    sizes = (segments.starts[1:] - segments.starts[:-1]).long()
    owner = torch.repeat_interleave(torch.arange(segments.count, device=sizes.device), sizes)
    parent = segments.parents.long()[owner]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((owner[query] == owner[key]) & (query >= key)) | (owner[key] == parent[query])

    return _flex(sees, rows=None, queries=length, keys=length, device=sizes.device, packed=True)


def flex_batch(*, queries: int, keys: int, kept: Tensor | None, device: torch.device) -> FlexPlan:
    """Return the same of a batch; kept (B, K) bool hides padding, None keeps all."""
    past = keys - queries

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        before = key <= query + past
        # Padding sees itself, lest softmax divides by zero.
        return before if kept is None else (before & kept[batch, key]) | (key == query + past)

    return _flex(sees, rows=None if kept is None else len(kept), queries=queries, keys=keys, device=device)


def _flex(
    sees: Callable[..., Tensor],
    *,
    rows: int | None,
    queries: int,
    keys: int,
    device: torch.device,
    packed: bool = False,
) -> FlexPlan:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    make_mask = _compiled(create_block_mask, device.type)
    block_mask = make_mask(sees, rows, None, queries, keys, device=str(device))
    return FlexPlan(block_mask, _compiled(flex_attention, device.type), packed=packed)


@functools.cache
def _compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Return the compiled function, compiled once per process; on the CPU, for small rows, as it is.

    Uncompiled, both build the square matrix, and the compiled kernels for CPUs have no backward pass.
    """
    return torch.compile(function, dynamic=True) if device == "cuda" else function
