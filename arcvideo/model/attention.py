"""Who sees whom: one function, `attend`, over a plan made once per forward and shared by all layers.

A packed row is a list of segments; a token sees its own segment causally and the whole of its segment's parent.
Shapes: B batch, L tokens, Q queries, K keys, H query heads, G key heads, h head width, N items of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from arcvideo.types import Segments


@dataclass(frozen=True)
class Block:
    """One scaled-dot-product call over N padded items."""

    queries: Tensor
    """(N * Q,) int64 positions in the row."""
    keys: Tensor | None
    """(N * K,) int64 positions in the row; None when equal to `queries`."""
    items: int
    """N."""
    mask: Tensor | None
    """(N or 1, 1, Q, K) additive; None means causal."""

    def to(self, device: torch.device) -> Block:
        """Return the block on `device`."""
        keys, mask = (None if part is None else part.to(device) for part in (self.keys, self.mask))
        return Block(queries=self.queries.to(device), keys=keys, items=self.items, mask=mask)


@dataclass(frozen=True)
class PackedPlan:
    """A packed row as blocks whose outputs, laid end to end, are picked back into row order."""

    blocks: tuple[Block, ...]
    order: Tensor | None
    """(L,) int64: where each token's output stands among the blocks' outputs; None when already in order."""


@dataclass(frozen=True)
class BatchPlan:
    """A batch of rows of equal length."""

    mask: Tensor | None
    """(B, 1, Q, K) additive; None with `causal` decides alone."""
    causal: bool
    """Whether query i sees keys 0..i only; False for a single new token, which sees all keys."""


@dataclass(frozen=True)
class FlexPlan:
    """A packed row on CUDA: FlexAttention with the same rule as a block mask.

    TODO: unmeasured. It needs a GPU, which the tests do not have.
    """

    block_mask: Any
    flex: Callable[..., Tensor]


Plan = PackedPlan | BatchPlan | FlexPlan


def attend(q: Tensor, k: Tensor, v: Tensor, *, plan: Plan) -> Tensor:
    """Return the attention output, shaped like `q`.

    Args:
        q: (L, H, h) packed or (B, Q, H, h) batched.
        k: (L, G, h) or (B, K, G, h).
        v: like k.
        plan: who sees whom.
    """
    if isinstance(plan, BatchPlan):
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return _sdpa(*heads_first, mask=plan.mask, causal=plan.causal).transpose(1, 2)
    if isinstance(plan, FlexPlan):
        heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        return plan.flex(*heads_first, block_mask=plan.block_mask, enable_gqa=True)[0].transpose(0, 1)
    outputs = [_attend_block(q, k, v, block=block) for block in plan.blocks]
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return joined if plan.order is None else joined.index_select(0, plan.order)


def _attend_block(q: Tensor, k: Tensor, v: Tensor, *, block: Block) -> Tensor:
    """Return (N * Q, H, h)."""
    keys = block.queries if block.keys is None else block.keys
    picked = (x.index_select(0, rows) for x, rows in ((q, block.queries), (k, keys), (v, keys)))
    q_NHQh, k_NGKh, v_NGKh = (x.unflatten(0, (block.items, -1)).transpose(1, 2) for x in picked)
    out = _sdpa(q_NHQh, k_NGKh, v_NGKh, mask=block.mask, causal=block.mask is None)
    return out.transpose(1, 2).flatten(0, 1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool) -> Tensor:
    gqa = q.shape[1] != k.shape[1]
    return nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa)


def batch_plan(
    *, queries: int, keys: int, attention_mask: Tensor | None, dtype: torch.dtype, device: torch.device
) -> BatchPlan:
    """Return the plan of a batch whose last `queries` of `keys` tokens are asked about.

    Args:
        queries: Q, new tokens.
        keys: K, cached and new tokens.
        attention_mask: (B, K) 1 for tokens, 0 for padding; None for no padding.
        dtype: of the activations.
        device: of the activations.
    """
    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    if attention_mask is None and queries == keys:
        return BatchPlan(mask=None, causal=True)
    if attention_mask is None and queries == 1:
        return BatchPlan(mask=None, causal=False)
    position = torch.arange(keys, device=device)
    visible = (position <= position[keys - queries :, None])[None, None]
    if attention_mask is not None:
        # Padding queries see themselves, lest softmax divides by zero.
        own = position == position[keys - queries :, None]
        visible = (visible & attention_mask[:, None, None, :].bool().to(device)) | own
    return BatchPlan(mask=_additive(visible, dtype), causal=False)


def packed_plan(segments: Segments, *, dtype: torch.dtype, device: torch.device) -> Plan:
    """Return the plan of a packed row: FlexAttention on CUDA, batched families elsewhere.

    Raises:
        ValueError: a parent that has a parent itself or does not stand before its child.
    """
    starts, parents = segments.starts.tolist(), segments.parents.tolist()
    for child, parent in enumerate(parents):
        if parent >= child or (parent >= 0 and parents[parent] >= 0):
            raise ValueError(f"segment {child} has parent {parent}: parents stand earlier and have none themselves")
    if device.type == "cuda":
        return flex_plan(segments.to(device), length=starts[-1])
    return _family_plan(starts, parents, dtype=dtype, device=device)


Span = tuple[int, int]
"""First token and the one after the last."""


def _family_plan(starts: list[int], parents: list[int], *, dtype: torch.dtype, device: torch.device) -> PackedPlan:
    """Return two kinds of blocks: segments that read only themselves, and children that read parent and themselves.

    Nothing is computed between the children of a parent, and a lone segment needs no mask at all.
    """
    spans = list(pairwise(starts))
    filled = [(span, parent) for span, parent in zip(spans, parents, strict=True) if span[0] < span[1]]
    alone = [(span,) for span, parent in filled if parent < 0]
    children = [(spans[parent], span) for span, parent in filled if parent >= 0]
    parts = [_causal_block(group) for group in _similar(alone)]
    parts += [_children_block(group, dtype=dtype) for group in _similar(children)]
    order = _order([kept for _, kept in parts], [block for block, _ in parts], length=starts[-1])
    return PackedPlan(tuple(block.to(device) for block, _ in parts), None if order is None else order.to(device))


def _similar(items: Sequence[tuple[Span, ...]]) -> list[list[tuple[Span, ...]]]:
    """Return the items (spans that are padded side by side) in groups whose padding at most doubles a span."""
    groups: list[list[tuple[Span, ...]]] = []
    bounds: list[tuple[int, int]] = []
    for item in sorted(items, key=_lengths, reverse=True):
        lengths = _lengths(item)
        wider = [(min(low, n), max(high, n)) for (low, high), n in zip(bounds, lengths, strict=False)]
        # Slack keeps short spans together: another call costs more than a few padded tokens.
        if not groups or any(high > 2 * low + 32 for low, high in wider):
            groups.append([])
            wider = [(n, n) for n in lengths]
        groups[-1].append(item)
        bounds = wider
    return groups


def _lengths(item: tuple[Span, ...]) -> tuple[int, ...]:
    return tuple(last - first for first, last in item)


def _padded(spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
    """Return row positions (N, M) of the spans, and which slots hold a token (N, M); empty slots repeat position 0."""
    first, last = torch.tensor(spans, dtype=torch.int64).unbind(1)
    position = first[:, None] + torch.arange(int((last - first).max()))
    kept = position < last[:, None]
    return position.where(kept, 0), kept


def _causal_block(group: Sequence[tuple[Span, ...]]) -> tuple[Block, Tensor]:
    """Return the block of lone segments. Padding stands last, so causality hides it from every token."""
    position, kept = _padded([item[0] for item in group])
    return Block(queries=position.flatten(), keys=None, items=len(group), mask=None), kept.flatten()


def _children_block(group: Sequence[tuple[Span, ...]], *, dtype: torch.dtype) -> tuple[Block, Tensor]:
    """Return the block in which each child (N, Q) reads its parent and itself (N, P + Q)."""
    prefix, prefix_kept = _padded([parent for parent, _ in group])
    own, own_kept = _padded([child for _, child in group])
    longest = own.shape[1]
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    if bool(prefix_kept.all()):
        prefix_kept = prefix_kept[:1]
    see_parent = prefix_kept[:, None, :].expand(-1, longest, -1)
    see_own = causal.expand(len(see_parent), -1, -1)
    mask = _additive(torch.cat([see_parent, see_own], dim=2).unsqueeze(1), dtype)
    keys = torch.cat([prefix, own], dim=1).flatten()
    return Block(queries=own.flatten(), keys=keys, items=len(group), mask=mask), own_kept.flatten()


def _order(kept: list[Tensor], blocks: list[Block], *, length: int) -> Tensor | None:
    """Return where each token's output stands, or None when the blocks' outputs are the row itself."""
    mask = torch.cat(kept)
    position = torch.cat([block.queries for block in blocks])[mask]
    slot = torch.arange(mask.numel())[mask]
    if mask.numel() == length and bool((position == slot).all()):
        return None
    order = torch.empty(length, dtype=torch.int64)
    order[position] = slot
    return order


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def flex_plan(segments: Segments, *, length: int) -> FlexPlan:
    """Return the FlexAttention form of the rule. TODO: unmeasured, see FlexPlan."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    sizes = (segments.starts[1:] - segments.starts[:-1]).long()
    owner = torch.repeat_interleave(torch.arange(segments.count, device=sizes.device), sizes)
    parent = segments.parents.long()[owner]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((owner[query] == owner[key]) & (query >= key)) | (owner[key] == parent[query])

    make_mask = _compiled(create_block_mask)
    block_mask = make_mask(sees, None, None, length, length, device=str(sizes.device))
    return FlexPlan(block_mask, _compiled(flex_attention))


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled function, compiled once per process; uncompiled both would build the square matrix."""
    return torch.compile(function, dynamic=True)
