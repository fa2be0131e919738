"""Frame layout and the four rope axes (index, column, row, frame) of a token sequence.

Imports numpy and torch only: data workers use it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from arcvideo.model.special import FlatIds, SpecialIds

GROUP_STEP = 4
"""Temporal positions between groups of two frames in Qwen2.5-VL: two a second, as its checkpoints say."""


def frame_ids(grid: int, *, special: SpecialIds) -> Tensor:
    """Return the ids of one frame, (grid * (grid + 1) + 4,) int64, newline ids not yet replaced."""
    row = [special.image] * grid + [special.newline]
    return torch.tensor([special.img_open, special.image, *row * grid, special.image, special.img_close])


def video_ids(grid: int, *, frames: int, special: SpecialIds) -> Tensor:
    """Return `<vid>` frames `</vid>`, (n,) int64, newline ids not yet replaced.

    A frame has grid * (grid + 1) + 4 of them; where frames have no marks, two frames have grid * grid together.
    """
    if isinstance(special, FlatIds):
        row = torch.tensor([special.image] * (grid - 1) + [special.newline])
        group = torch.cat([row.repeat(grid - 1), row[:-1], torch.tensor([special.img_close])])
        body = group.repeat(-(-frames // 2))
    else:
        body = frame_ids(grid, special=special).repeat(frames)
    return torch.cat([torch.tensor([special.vid_open]), body, torch.tensor([special.vid_close])])


def replace_newlines(ids: Tensor, *, special: SpecialIds) -> Tensor:
    """Return `ids` with newline ids, and marks of cells alone, turned into image ids: what the model reads."""
    if isinstance(special, FlatIds):
        ids = torch.where(ids == special.img_close, special.image, ids)
    return torch.where(ids == special.newline, special.image, ids)


def xd_positions(ids: Tensor, special: SpecialIds, *, offset: int = 0, restart_after_eod: bool = False) -> Tensor:
    """Return the position of every token on the four axes, (4, L) int64.

    All axes hold the running index, except on a frame's grid (newlines included, begin and end tokens excluded),
    where the last three hold column, row and number of the frame.

    Args:
        ids: (L,) int64, BEFORE newline ids are replaced.
        special: ids of the markers.
        offset: index of the first token; a branch starts where its prefix ended.
        restart_after_eod: the reference's training rule: index and frame number restart after every end-of-document
            id, and a last document that lacks one keeps plain positions.

    Raises:
        ValueError: frame markers that do not pair, or a grid whose rows differ.
    """
    tokens = ids.detach().cpu().numpy()
    if isinstance(special, FlatIds):
        return torch.from_numpy(_flat(tokens, special, offset=offset))
    if not restart_after_eod:
        return torch.from_numpy(_document(tokens, special, offset=offset, grids=True))
    ends = np.flatnonzero(tokens == special.end) + 1
    bounds = [0, *ends.tolist()]
    parts = [
        _document(tokens[first:last], special, offset=offset if first == 0 else 0, grids=True)
        for first, last in pairwise(bounds)
    ]
    if bounds[-1] < len(tokens):
        start = offset if bounds[-1] == 0 else 0
        parts.append(_document(tokens[bounds[-1] :], special, offset=start, grids=False))
    return torch.from_numpy(np.concatenate(parts, axis=1) if parts else np.zeros((4, 0), dtype=np.int64))


def next_position(ids: Tensor, special: SpecialIds, *, offset: int = 0) -> int:
    """Return the position of what follows `ids` (L,), on all axes: their number, where frames do not compress it.

    Args:
        ids: BEFORE newline ids are replaced.
        special: ids of the markers.
        offset: position of the first of them.
    """
    if not isinstance(special, FlatIds) or not len(ids):
        return offset + len(ids)
    return int(xd_positions(ids, special, offset=offset).max()) + 1


def _flat(tokens: np.ndarray, special: FlatIds, *, offset: int) -> np.ndarray:
    """Return (4, L) int64 by Qwen2.5-VL's rule: text counts on, a video starts where it stands, text behind it follows
    the largest position of the video.

    Raises:
        ValueError: cells that do not form rows and groups of equal length.
    """
    axes = np.zeros((4, len(tokens)), dtype=np.int64)
    opens, closes = np.flatnonzero(tokens == special.vid_open), np.flatnonzero(tokens == special.vid_close)
    if len(opens) != len(closes) or (closes <= opens).any():
        raise ValueError(f"{len(opens)} video starts and {len(closes)} video ends do not pair")
    place, here = 0, offset
    for first, last in zip(opens + 1, closes, strict=True):
        axes[:, place:first] = here + np.arange(first - place)
        here += int(first) - place
        cells = tokens[first:last]
        ends = np.flatnonzero((cells == special.newline) | (cells == special.img_close))
        width = int(ends[0]) + 1 if len(ends) else 0
        each = int((cells == special.img_close).argmax()) + 1 if (cells == special.img_close).any() else 0
        if not each or len(cells) % each or each % width or (np.diff(ends, prepend=-1) != width).any():
            raise ValueError("the cells of a video do not form rows and groups of equal length")
        cell = np.arange(len(cells))
        axes[1, first:last] = here + cell % each % width
        axes[2, first:last] = here + cell % each // width
        axes[3, first:last] = here + cell // each * GROUP_STEP
        axes[0, first:last] = axes[3, first:last]
        here, place = int(axes[1:, first:last].max()) + 1, int(last)
    axes[:, place:] = here + np.arange(len(tokens) - place)
    return axes


def _document(tokens: np.ndarray, special: SpecialIds, *, offset: int, grids: bool) -> np.ndarray:
    """Return positions of one document, (4, L) int64."""
    index = np.arange(offset, offset + len(tokens), dtype=np.int64)
    axes = np.stack([index, index, index, index])
    opens = np.flatnonzero(tokens == special.img_open)
    closes = np.flatnonzero(tokens == special.img_close)
    if not grids or not len(opens) + len(closes):
        return axes
    if len(closes) != len(opens) or (closes <= opens).any() or (closes[:-1] > opens[1:]).any():
        raise ValueError(f"{len(opens)} <img> and {len(closes)} </img> ids do not pair into frames")
    spans = closes - opens - 3
    newlines = np.flatnonzero(tokens == special.newline)
    rows = np.searchsorted(newlines, closes) - np.searchsorted(newlines, opens)
    if (spans <= 0).any() or (rows == 0).any() or (spans % np.maximum(rows, 1)).any():
        raise ValueError("a frame's ids do not form rows of equal length that end with <newline>")
    # Frames of one shape, in practice all of them, are written together.
    for span, count in set(zip(spans.tolist(), rows.tolist(), strict=True)):
        frames = np.flatnonzero((spans == span) & (rows == count))
        cell = np.arange(span)
        where = opens[frames, None] + 2 + cell
        axes[1, where] = cell % (span // count)
        axes[2, where] = cell // (span // count)
        axes[3, where] = frames[:, None]
    return axes
