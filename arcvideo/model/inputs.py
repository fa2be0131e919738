"""What `forward` is given, checked and brought into one form.

Shapes: B batch, L tokens, D width, N fused tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_batch(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    *,
    batch_only: Mapping[str, Any],
    packed_only: Mapping[str, Any],
    has_media: bool,
) -> bool:
    """Return whether this is a packed row (L,); else it is a batch (B, L).

    Args:
        input_ids: (L,) or (B, L), or None beside inputs_embeds.
        inputs_embeds: (B, L, D), or None.
        batch_only: arguments that a packed row does not take.
        packed_only: arguments that a batch does not take.
        has_media: whether there are media.

    Raises:
        ValueError: both or none of the two, or an argument of the other form.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    if inputs_embeds is not None:
        if inputs_embeds.dim() != 3:
            raise ValueError(f"inputs_embeds must be (B, L, D), got {tuple(inputs_embeds.shape)}")
        if has_media:
            raise ValueError("inputs_embeds hold their fused tokens already: give input_ids with media")
    packed = input_ids is not None and input_ids.dim() == 1
    given = [name for name, value in batch_only.items() if value is not None and value is not False]
    if packed and given:
        raise ValueError(f"a packed row (L,) takes segments; {', '.join(given)} need a batch (B, L)")
    given = [name for name, value in packed_only.items() if value is not None]
    if not packed and given:
        raise ValueError(f"{' and '.join(given)} need a packed row (L,), got a batch (B, L)")
    mask = batch_only["attention_mask"]
    if mask is not None and mask.dim() != 2:
        raise ValueError(f"attention_mask must be (B, L), 1 for tokens and 0 for padding, got {tuple(mask.shape)}")
    return packed


def four_axes(position_ids: Tensor, *, shape: torch.Size) -> Tensor:
    """Return positions (..., 4, L) of ids shaped (..., L).

    Args:
        position_ids: (..., 4, L), or shaped like the ids: text, which has the same position on every axis. A batch may
            share one row.
        shape: of the ids.

    Raises:
        ValueError: another shape.
    """
    length, rows = shape[-1], shape[:-1]
    if position_ids.dim() == len(shape) and position_ids.shape[-1] == length and _fits(position_ids.shape[:-1], rows):
        return position_ids.unsqueeze(-2).expand(*rows, 4, length)
    four = position_ids.dim() == len(shape) + 1 and position_ids.shape[-2:] == (4, length)
    if four and _fits(position_ids.shape[:-2], rows):
        return position_ids
    kind = "(4, L) or (L,) of a packed row" if len(shape) == 1 else "(B, 4, L) or (B, L)"
    raise ValueError(f"position_ids must be {kind}, got {tuple(position_ids.shape)} for ids {tuple(shape)}")


def _fits(given: torch.Size, rows: torch.Size) -> bool:
    return given == rows or tuple(given) == (1,)


def running_positions(shape: torch.Size, *, past: int, attention_mask: Tensor | None, like: Tensor) -> Tensor:
    """Return the running index of tokens, padding not counted: shaped like the ids, on the device of `like`."""
    length = shape[-1]
    if attention_mask is None:
        return torch.arange(past, past + length, device=like.device).expand(shape)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]


def insert(embeds: Tensor, *, slots: Tensor, tokens: Tensor) -> Tensor:
    """Return embeds (..., L, D) with tokens (N, D) at the slots (N,) of the flattened row."""
    return embeds.flatten(0, -2).index_copy(0, slots, tokens.to(embeds.dtype)).view_as(embeds)
