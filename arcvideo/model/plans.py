"""Plans of attention: how a packed row or a padded batch is cut into calls of a kernel; `attention.py` makes the calls.

Shapes: B batch, L tokens, Q queries, K keys, N items of a block, M slots of an item, P tokens of a parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from arcvideo.model.attention import AttentionPlan, BatchPlan, Block, Mask, PackedPlan, Span, VarlenPlan
from arcvideo.model.flex import flex_batch, flex_plan
from arcvideo.types import Segments

LEAST_FLEX_WIDTH = 16
"""Narrowest heads that FlexAttention compiles on CUDA."""


def batch_plan(
    *,
    queries: int,
    keys: int,
    attention_mask: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    implementation: str = "sdpa",
    written_out: bool = False,
) -> AttentionPlan:
    """Return the plan of a batch whose last `queries` of `keys` tokens are asked about.

    Args:
        queries: Q, new tokens.
        keys: K, cached and new tokens.
        attention_mask: (B, K) 1 for tokens, 0 for padding; None for no padding.
        dtype: of the activations.
        device: of the activations.
        implementation: sdpa or auto (the same here), flex_attention (whole prompts; single tokens use sdpa), eager.
        written_out: rows stay as they are, padding too, for attention weights that are to be returned.
    """
    eager = implementation == "eager"
    kept = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.to(device).bool()
    if implementation == "flex_attention" and queries > 1 and not written_out:
        return replace(flex_batch(queries=queries, keys=keys, kept=kept, device=device), keys=keys)
    if kept is None and queries in (1, keys):
        return BatchPlan(mask=None, causal=queries == keys, eager=eager, keys=keys)
    if queries == keys and kept is not None:
        if bool((kept[:, 1:] <= kept[:, :-1]).all()):
            # Padding stands last, so causality hides it from every token.
            return BatchPlan(mask=None, causal=True, eager=eager, keys=keys)
        if not written_out:
            return replace(_compacted(kept), eager=eager, keys=keys)
    mask = Mask.of(past=keys - queries, queries=queries, kept=kept, dtype=dtype, device=device)
    return BatchPlan(mask=mask, causal=False, eager=eager, keys=keys)


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
    # Nobody reads what becomes of padding.
    order = torch.zeros(rows * length, dtype=torch.int64, device=kept.device)
    order[position[real]] = real.flatten().nonzero().squeeze(1)
    return PackedPlan((Block(queries=position.flatten(), keys=None, items=rows, mask=None),), order)


def kernel_of(
    spans: Sequence[Span], parents: Sequence[int], *, device: str, dtype: torch.dtype, width: int | None, named: str
) -> str:
    """Return what computes a packed row: blocks, varlen or flex.

    Args:
        spans: first token of each segment and the one after its last.
        parents: number of the segment that each one reads, -1 for none.
        device: type of the device.
        dtype: of the activations.
        width: h; None is not asked about.
        named: `model.attention`.
    """
    if named == "flex_attention":
        return "flex"
    if named != "auto" or device != "cuda":
        return "blocks"
    if max(parents, default=-1) >= 0:
        # The compiled kernel has no double precision, and no heads narrower than a tile.
        return "flex" if dtype != torch.float64 and (width is None or width >= LEAST_FLEX_WIDTH) else "blocks"
    lengths = {last - first for first, last in spans if first < last}
    flash = dtype in (torch.bfloat16, torch.float16) and (width is None or width % 8 == 0)
    return "varlen" if flash and len(lengths) > 1 else "blocks"


def packed_plan(
    segments: Segments,
    *,
    dtype: torch.dtype,
    device: torch.device,
    implementation: str = "sdpa",
    width: int | None = None,
) -> AttentionPlan:
    """Return the plan of a packed row: batched families, documents by their bounds, or one FlexAttention.

    Args:
        segments: how the row is cut.
        dtype: of the activations.
        device: of the activations.
        implementation: `model.attention`; see `attention.py` for what auto takes.
        width: h, which not every kernel takes.

    Raises:
        ValueError: a parent that has a parent itself or does not stand before its child.
    """
    starts, parents = segments.starts.tolist(), segments.parents.tolist()
    for child, parent in enumerate(parents):
        if parent >= child or (parent >= 0 and parents[parent] >= 0):
            raise ValueError(f"segment {child} has parent {parent}: parents stand earlier and have none themselves")
    spans = list(pairwise(starts))
    kernel = kernel_of(spans, parents, device=device.type, dtype=dtype, width=width, named=implementation)
    if kernel == "flex":
        return flex_plan(segments.to(device), length=starts[-1])
    if kernel == "varlen":
        bounds = torch.tensor(sorted(set(starts)), dtype=torch.int32)
        return VarlenPlan(bounds.to(device), max(last - first for first, last in spans))
    return replace(_family_plan(starts, parents, dtype=dtype, device=device), eager=implementation == "eager")


def _family_plan(starts: list[int], parents: list[int], *, dtype: torch.dtype, device: torch.device) -> PackedPlan:
    """Return two kinds of blocks: segments that read only themselves, and children that read parent and themselves.

    Nothing is computed between the children of a parent, and a lone segment needs no mask at all.
    """
    spans = list(pairwise(starts))
    filled = [(span, parent) for span, parent in zip(spans, parents, strict=True) if span[0] < span[1]]
    alone = [(span,) for span, parent in filled if parent < 0]
    children = [(spans[parent], span) for span, parent in filled if parent >= 0]
    parts = [_causal_block(group) for group in _similar(alone)]
    parts += [_children_block(group, dtype=dtype, device=device) for group in _similar(children)]
    order = _order([kept for _, kept in parts], [block for block, _ in parts], length=starts[-1])
    # Planned on the host and moved once: asking the device for lengths would wait for it.
    blocks = (replace(block, queries=_on(block.queries, device), keys=_on(block.keys, device)) for block, _ in parts)
    return PackedPlan(tuple(blocks), None if order is None else order.to(device))


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
    """Return row positions (N, M) of the spans, and which slots hold a token (N, M).

    Empty slots read the tokens of the longest span, each at most once an item: hundreds that all read one token would
    add their gradients to it one after the other.
    """
    first, last = torch.tensor(spans, dtype=torch.int64).unbind(1)
    lengths = last - first
    slot = torch.arange(int(lengths.max()))
    kept = slot < lengths[:, None]
    return (first[:, None] + slot).where(kept, first[lengths.argmax()] + slot), kept


def _run(positions: Tensor) -> Tensor | Span:
    """Return the positions, or the run of tokens that they are."""
    flat = positions.flatten()
    first = int(flat[0]) if len(flat) else 0
    return (first, first + len(flat)) if torch.equal(flat, torch.arange(first, first + len(flat))) else flat


def _on(rows: Tensor | Span | None, device: torch.device) -> Any:
    return rows.to(device) if isinstance(rows, Tensor) else rows


def _causal_block(group: Sequence[tuple[Span, ...]]) -> tuple[Block, Tensor]:
    """Return the block of lone segments. Padding stands last, so causality hides it from every token."""
    position, kept = _padded([item[0] for item in group])
    return Block(queries=_run(position), keys=None, items=len(group), mask=None), kept.flatten()


def _children_block(
    group: Sequence[tuple[Span, ...]], *, dtype: torch.dtype, device: torch.device
) -> tuple[Block, Tensor]:
    """Return the block in which each child (N, Q) reads its parent and itself (N, P + Q)."""
    prefix, prefix_kept = _padded([parent for parent, _ in group])
    own, own_kept = _padded([child for _, child in group])
    longest = own.shape[1]
    kept = None if bool(prefix_kept.all()) else nnf.pad(prefix_kept, (0, longest), value=True)
    mask = Mask.of(past=prefix.shape[1], queries=longest, kept=kept, dtype=dtype, device=device)
    keys = _run(torch.cat([prefix, own], dim=1))
    return Block(queries=_run(own), keys=keys, items=len(group), mask=mask), own_kept.flatten()


def _order(kept: list[Tensor], blocks: list[Block], *, length: int) -> Tensor | None:
    """Return where each token's output stands, or None when the blocks' outputs are the row itself."""
    mask = torch.cat(kept)
    position = torch.cat([_positions(block.queries) for block in blocks])[mask]
    slot = torch.arange(mask.numel())[mask]
    if mask.numel() == length and bool((position == slot).all()):
        return None
    order = torch.empty(length, dtype=torch.int64)
    order[position] = slot
    return order


def _positions(rows: Tensor | Span) -> Tensor:
    return torch.arange(*rows) if isinstance(rows, tuple) else rows
