"""Who sees whom: one function, `attend`, over a plan made once per forward and shared by all layers.

A packed row is a list of segments; a token sees its own segment causally and the whole of its segment's parent.
`plans.py` makes the plans. What `model.attention: auto` runs, row by row (`plans.py:kernel_of`):

| row | on the CPU | on CUDA |
|---|---|---|
| one document, or several of one length | fused kernel, causal | flash, causal |
| documents of different length | fused kernel, padded blocks | flash over their bounds (varlen): nothing is padded |
| branches that read a parent | fused kernel, a mask a block of branches | flex_attention: the rule in one kernel |

On CUDA no keys or values are copied in any of these. sdpa takes the left column everywhere, flex_attention and eager
what their names say.
Shapes: B batch, L tokens, Q queries, K keys, H query heads, G key heads, h head width, N items of a block, r = H / G.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

MASK_ROWS = 512
"""Queries that a mask covers at once: no mask grows with the square of the length."""
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""On CUDA, best first. Without cuDNN's, which plans anew (tens of milliseconds) for every length it has not met."""


@dataclass(frozen=True)
class Mask:
    """Which of K keys Q queries see, written out a few rows at a time.

    Query i stands at key `past + i`; it sees the keys up to there that are kept, and always itself: padding that saw
    nothing would divide by zero.
    """

    past: int
    queries: int
    """Q."""
    kept: Tensor | None
    """(N or 1, K) bool; None keeps all."""
    dtype: torch.dtype
    """Of the activations."""
    whole: Tensor | None = None
    """(N or 1, 1, Q, K) additive: every row, made once for all layers while Q is small."""

    @classmethod
    def of(cls, *, past: int, queries: int, kept: Tensor | None, dtype: torch.dtype, device: torch.device) -> Mask:
        """Return the mask on `device`, rows written out when they are few."""
        mask = cls(past=past, queries=queries, kept=None if kept is None else kept.to(device), dtype=dtype)
        return replace(mask, whole=mask.rows(0, queries, device=device)) if queries <= MASK_ROWS else mask

    def rows(self, first: int, last: int, *, device: torch.device) -> Tensor:
        """Return the additive mask of queries first..last over the keys up to the last one's own."""
        end = self.past + last
        key = torch.arange(end, device=device)
        own = key[self.past + first :, None]
        visible = (key <= own)[None]
        if self.kept is not None:
            visible = (visible & self.kept[:, None, :end]) | (key == own)
        return _additive(visible[:, None], self.dtype)


Span = tuple[int, int]
"""First token and the one after the last."""


@dataclass(frozen=True)
class Block:
    """One attention over N padded items."""

    queries: Tensor | Span
    """(N * Q,) int64 positions in the row, or the run of tokens they are: read without a copy."""
    keys: Tensor | Span | None
    """(N * K,) int64 positions in the row, or a run; None when equal to `queries`."""
    items: int
    """N."""
    mask: Mask | None
    """None means causal."""


@dataclass(frozen=True)
class PackedPlan:
    """Tokens as blocks whose outputs, laid end to end, are picked back into the order of the row.

    A batch (B, L) counts as one row of B * L tokens.
    """

    blocks: tuple[Block, ...]
    order: Tensor | None
    """(L,) int64: where each token's output stands among the blocks' outputs; None when already in order."""
    eager: bool = False
    """Written-out softmax in place of the fused kernel."""
    keys: int | None = None
    """K, where a cache hands out more rows than are filled; None reads all."""


@dataclass(frozen=True)
class BatchPlan:
    """A batch of rows of equal length."""

    mask: Mask | None
    """None with `causal` decides alone."""
    causal: bool
    """Whether query i sees keys 0..i only; False for a single new token, which sees all keys."""
    eager: bool = False
    """Written-out softmax in place of the fused kernel."""
    keys: int | None = None
    """K, where a cache hands out more rows than are filled; None reads all."""


@dataclass(frozen=True)
class FlexPlan:
    """FlexAttention with the same rules as a block mask; a packed row or a batch. TODO: unmeasured on CUDA."""

    block_mask: Any
    flex: Callable[..., Tensor]
    packed: bool
    """Whether the mask is over one packed row, which a batch (B, L) then counts as."""
    keys: int | None = None
    """K, where a cache hands out more rows than are filled; None reads all."""


@dataclass(frozen=True)
class VarlenPlan:
    """Documents of a packed row, each causal, by their bounds. Half precision on CUDA. TODO: unmeasured."""

    bounds: Tensor
    """(N + 1,) int32: where each document starts, and the end of the row."""
    longest: int
    """Tokens of the longest document."""
    keys: int | None = None
    """As in the other plans; a packed row has no cache."""


AttentionPlan = PackedPlan | BatchPlan | FlexPlan | VarlenPlan


def attend(q: Tensor, k: Tensor, v: Tensor, *, plan: AttentionPlan) -> Tensor:
    """Return the attention output, shaped like `q`.

    Args:
        q: (L, H, h), or (B, Q, H, h) of a batch.
        k: (L, G, h) or (B, K, G, h).
        v: like k.
        plan: who sees whom.
    """
    if isinstance(plan, BatchPlan):
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return _scaled_dot(*heads_first, mask=plan.mask, causal=plan.causal, eager=plan.eager).transpose(1, 2)
    if isinstance(plan, VarlenPlan):
        rows = [x.flatten(0, -3) for x in (q, k, v)]
        bounds = {"cu_seq_q": plan.bounds, "cu_seq_k": plan.bounds, "max_q": plan.longest, "max_k": plan.longest}
        grouped = rows[0].shape[1] != rows[1].shape[1]
        out: Any = varlen_attn(*rows, **bounds, window_size=(-1, 0), enable_gqa=grouped)  # type: ignore[arg-type]
        return out.view(q.shape)
    if isinstance(plan, FlexPlan):
        batched = ((x.flatten(0, -3).unsqueeze(0) if plan.packed else x).transpose(1, 2) for x in (q, k, v))
        return plan.flex(*batched, block_mask=plan.block_mask, enable_gqa=True).transpose(1, 2).reshape(q.shape)
    rows = [x.flatten(0, -3) for x in (q, k, v)]
    outputs = [_attend_block(*rows, block=block, eager=plan.eager) for block in plan.blocks]
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (joined if plan.order is None else joined.index_select(0, plan.order)).view(q.shape)


def attend_openly(q: Tensor, k: Tensor, v: Tensor, *, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
    """Return the attention output, shaped like `q`, and the weights (B, H, Q, K) it comes from.

    Args:
        q: (B, Q, H, h).
        k: (B, K, G, h).
        v: like k.
        plan: of a batch.

    Raises:
        ValueError: another plan, whose weights have no such shape.
    """
    if not isinstance(plan, BatchPlan):
        raise ValueError("output_attentions needs a batch (B, L) of plain rows")
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = plan.mask or Mask(past=k.shape[2] - q.shape[2], queries=q.shape[2], kept=None, dtype=q.dtype)
    weights = _weights(q, k, mask.rows(0, mask.queries, device=q.device))
    return (weights @ _all_heads(v, heads=q.shape[1])).transpose(1, 2), weights


def attend_fully(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return (N, H, Q, h): every query sees every key, as in the towers; all are (N, H, tokens, h)."""
    return _fused(q, k, v, None, causal=False)


def _attend_block(q: Tensor, k: Tensor, v: Tensor, *, block: Block, eager: bool) -> Tensor:
    """Return (N * Q, H, h)."""
    keys = block.queries if block.keys is None else block.keys
    picked = (_pick(x, rows) for x, rows in ((q, block.queries), (k, keys), (v, keys)))
    q_NHQh, k_NGKh, v_NGKh = (x.unflatten(0, (block.items, -1)).transpose(1, 2) for x in picked)
    out = _scaled_dot(q_NHQh, k_NGKh, v_NGKh, mask=block.mask, causal=block.mask is None, eager=eager)
    return out.transpose(1, 2).flatten(0, 1)


def _pick(x: Tensor, rows: Tensor | Span) -> Tensor:
    return x[slice(*rows)] if isinstance(rows, tuple) else x.index_select(0, rows)


def _scaled_dot(q: Tensor, k: Tensor, v: Tensor, *, mask: Mask | None, causal: bool, eager: bool) -> Tensor:
    """Return (N, H, Q, h); keys and values are (N, G, K, h)."""
    if eager and mask is None:
        past = k.shape[2] - q.shape[2]
        mask = Mask(past=past, queries=q.shape[2], kept=None, dtype=q.dtype)
    kernel = _softmax if eager else _fused
    if mask is None:
        return kernel(q, k, v, None, causal)
    if mask.whole is not None:
        return kernel(q, k, v, mask.whole, False)
    parts = []
    for first in range(0, mask.queries, MASK_ROWS):
        last = min(first + MASK_ROWS, mask.queries)
        end = mask.past + last
        rows = mask.rows(first, last, device=q.device)
        parts.append(kernel(q[:, :, first:last], k[:, :, :end], v[:, :, :end], rows, False))
    return torch.cat(parts, dim=2)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    on_cpu = q.device.type == "cpu"
    if mask is not None and q.shape[1] != k.shape[1] and not on_cpu:
        return _folded(q, k, v, mask)
    with contextlib.nullcontext() if on_cpu else sdpa_kernel(KERNELS, set_priority=True):
        gqa = q.shape[1] != k.shape[1]
        return nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa)


def _folded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Return the same as grouped-query attention with a mask, as plain attention of G heads over r * Q queries.

    The queries of a group stand behind each other, so that keys and values are used as they are. The kernel that takes
    a mask on CUDA (memory-efficient) knows no groups; asked for them, torch falls back to one that writes out all
    scores in fp32 and repeats keys and values.
    """
    groups, queries = k.shape[1], q.shape[2]
    folded = q.unflatten(1, (groups, -1)).flatten(2, 3)
    rows = mask.unsqueeze(2).expand(-1, -1, folded.shape[2] // queries, -1, -1).flatten(2, 3)
    with contextlib.nullcontext() if q.device.type == "cpu" else sdpa_kernel(KERNELS, set_priority=True):
        out = nnf.scaled_dot_product_attention(folded, k, v, attn_mask=rows.expand(len(q), groups, -1, -1))
    return out.unflatten(2, (-1, queries)).flatten(1, 2)


def _softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Return the formula itself, softmax in at least fp32; the caller gives a mask also where the rule is causal."""
    return _weights(q, k, mask) @ _all_heads(v, heads=q.shape[1])


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ _all_heads(k, heads=q.shape[1]).transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)


def _all_heads(x: Tensor, *, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
