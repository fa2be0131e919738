"""Who sees whom: one function, `attend`, over a plan made once per forward and shared by all layers.

A packed row is a list of segments; a token sees its own segment causally and the whole of its segment's parent.
Shapes: B batch, L tokens, Q queries, K keys, H query heads, G key heads, h head width, N items of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from arcvideo.types import Segments

MASK_ROWS = 512
"""Queries that a mask covers at once: no mask grows with the square of the length."""


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


@dataclass(frozen=True)
class Block:
    """One attention over N padded items."""

    queries: Tensor
    """(N * Q,) int64 positions in the row."""
    keys: Tensor | None
    """(N * K,) int64 positions in the row; None when equal to `queries`."""
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


@dataclass(frozen=True)
class BatchPlan:
    """A batch of rows of equal length."""

    mask: Mask | None
    """None with `causal` decides alone."""
    causal: bool
    """Whether query i sees keys 0..i only; False for a single new token, which sees all keys."""
    eager: bool = False
    """Written-out softmax in place of the fused kernel."""


@dataclass(frozen=True)
class FlexPlan:
    """FlexAttention with the same rules as a block mask; a packed row or a batch.

    TODO: unmeasured on CUDA. It needs a GPU, which the tests do not have.
    """

    block_mask: Any
    flex: Callable[..., Tensor]
    packed: bool
    """Whether the mask is over one packed row, which a batch (B, L) then counts as."""


Plan = PackedPlan | BatchPlan | FlexPlan


def attend(q: Tensor, k: Tensor, v: Tensor, *, plan: Plan) -> Tensor:
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
    if isinstance(plan, FlexPlan):
        batched = ((x.flatten(0, -3).unsqueeze(0) if plan.packed else x).transpose(1, 2) for x in (q, k, v))
        return plan.flex(*batched, block_mask=plan.block_mask, enable_gqa=True).transpose(1, 2).reshape(q.shape)
    rows = [x.flatten(0, -3) for x in (q, k, v)]
    outputs = [_attend_block(*rows, block=block, eager=plan.eager) for block in plan.blocks]
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (joined if plan.order is None else joined.index_select(0, plan.order)).view(q.shape)


def _attend_block(q: Tensor, k: Tensor, v: Tensor, *, block: Block, eager: bool) -> Tensor:
    """Return (N * Q, H, h)."""
    keys = block.queries if block.keys is None else block.keys
    picked = (x.index_select(0, rows) for x, rows in ((q, block.queries), (k, keys), (v, keys)))
    q_NHQh, k_NGKh, v_NGKh = (x.unflatten(0, (block.items, -1)).transpose(1, 2) for x in picked)
    out = _scaled_dot(q_NHQh, k_NGKh, v_NGKh, mask=block.mask, causal=block.mask is None, eager=eager)
    return out.transpose(1, 2).flatten(0, 1)


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
    gqa = q.shape[1] != k.shape[1]
    return nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa)


def _softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The formula itself, softmax in at least fp32; the caller gives a mask also where the rule is causal."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype) @ v


def batch_plan(
    *,
    queries: int,
    keys: int,
    attention_mask: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    implementation: str = "sdpa",
) -> Plan:
    """Return the plan of a batch whose last `queries` of `keys` tokens are asked about.

    Args:
        queries: Q, new tokens.
        keys: K, cached and new tokens.
        attention_mask: (B, K) 1 for tokens, 0 for padding; None for no padding.
        dtype: of the activations.
        device: of the activations.
        implementation: sdpa, flex_attention (whole prompts; single tokens use sdpa) or eager.
    """
    eager = implementation == "eager"
    kept = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.to(device).bool()
    if implementation == "flex_attention" and queries > 1:
        return _flex_batch(queries=queries, keys=keys, kept=kept, device=device)
    if kept is None and queries in (1, keys):
        return BatchPlan(mask=None, causal=queries == keys, eager=eager)
    if queries == keys and kept is not None:
        if bool((kept[:, 1:] <= kept[:, :-1]).all()):
            # Padding stands last, so causality hides it from every token.
            return BatchPlan(mask=None, causal=True, eager=eager)
        return replace(_compacted(kept), eager=eager)
    mask = Mask.of(past=keys - queries, queries=queries, kept=kept, dtype=dtype, device=device)
    return BatchPlan(mask=mask, causal=False, eager=eager)


def document_segments(input_ids: Tensor, *, end: int, attention_mask: Tensor | None) -> Segments:
    """Return the documents of a batch (B, L) as segments of one row of B * L tokens.

    A document ends with the end-of-document id or with its row; padding at either end of a row stands apart.
    """
    ids = input_ids.flatten().cpu()
    kept = torch.ones_like(ids) if attention_mask is None else attention_mask.flatten().cpu().long()
    begins = torch.zeros(len(ids), dtype=torch.bool)
    begins[1:] = (ids[:-1] == end) | (kept[1:] != kept[:-1])
    begins[:: input_ids.shape[1]] = True
    starts = torch.cat([begins.nonzero().squeeze(1), torch.tensor([len(ids)])])
    return Segments(starts=starts, parents=torch.full((len(starts) - 1,), -1))


def _compacted(kept: Tensor) -> PackedPlan:
    """Return the plan of a padded batch (B, L): tokens move to the front of their row and causality is enough."""
    rows, length = kept.shape
    first = torch.arange(rows, device=kept.device)[:, None] * length
    position = (~kept).long().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())] + first
    real = torch.arange(position.shape[1], device=kept.device) < kept.sum(1, keepdim=True)
    # Padding reads an arbitrary token; nobody reads what becomes of it.
    order = torch.zeros(rows * length, dtype=torch.int64, device=kept.device)
    order[position[real]] = real.flatten().nonzero().squeeze(1)
    return PackedPlan((Block(queries=position.where(real, 0).flatten(), keys=None, items=rows, mask=None),), order)


def packed_plan(segments: Segments, *, dtype: torch.dtype, device: torch.device, implementation: str = "sdpa") -> Plan:
    """Return the plan of a packed row: batched families, or one FlexAttention.

    Raises:
        ValueError: a parent that has a parent itself or does not stand before its child.
    """
    starts, parents = segments.starts.tolist(), segments.parents.tolist()
    for child, parent in enumerate(parents):
        if parent >= child or (parent >= 0 and parents[parent] >= 0):
            raise ValueError(f"segment {child} has parent {parent}: parents stand earlier and have none themselves")
    if implementation == "flex_attention":
        return flex_plan(segments.to(device), length=starts[-1])
    return replace(_family_plan(starts, parents, dtype=dtype, device=device), eager=implementation == "eager")


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
    parts = [_causal_block(group, device=device) for group in _similar(alone)]
    parts += [_children_block(group, dtype=dtype, device=device) for group in _similar(children)]
    order = _order([kept for _, kept in parts], [block for block, _ in parts], length=starts[-1])
    return PackedPlan(tuple(block for block, _ in parts), None if order is None else order.to(device))


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


def _causal_block(group: Sequence[tuple[Span, ...]], *, device: torch.device) -> tuple[Block, Tensor]:
    """Return the block of lone segments. Padding stands last, so causality hides it from every token."""
    position, kept = _padded([item[0] for item in group])
    return Block(queries=position.flatten().to(device), keys=None, items=len(group), mask=None), kept.flatten()


def _children_block(
    group: Sequence[tuple[Span, ...]], *, dtype: torch.dtype, device: torch.device
) -> tuple[Block, Tensor]:
    """Return the block in which each child (N, Q) reads its parent and itself (N, P + Q)."""
    prefix, prefix_kept = _padded([parent for parent, _ in group])
    own, own_kept = _padded([child for _, child in group])
    longest = own.shape[1]
    kept = None if bool(prefix_kept.all()) else nnf.pad(prefix_kept, (0, longest), value=True)
    mask = Mask.of(past=prefix.shape[1], queries=longest, kept=kept, dtype=dtype, device=device)
    keys = torch.cat([prefix, own], dim=1).flatten()
    block = Block(queries=own.flatten().to(device), keys=keys.to(device), items=len(group), mask=mask)
    return block, own_kept.flatten()


def _order(kept: list[Tensor], blocks: list[Block], *, length: int) -> Tensor | None:
    """Return where each token's output stands, or None when the blocks' outputs are the row itself."""
    mask = torch.cat(kept)
    position = torch.cat([block.queries.cpu() for block in blocks])[mask]
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
    sizes = (segments.starts[1:] - segments.starts[:-1]).long()
    owner = torch.repeat_interleave(torch.arange(segments.count, device=sizes.device), sizes)
    parent = segments.parents.long()[owner]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((owner[query] == owner[key]) & (query >= key)) | (owner[key] == parent[query])

    return _flex(sees, rows=None, queries=length, keys=length, device=sizes.device, packed=True)


def _flex_batch(*, queries: int, keys: int, kept: Tensor | None, device: torch.device) -> FlexPlan:
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
