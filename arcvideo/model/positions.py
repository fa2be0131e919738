"""Frame layout and the four rope axes (index, column, row, frame) of a token sequence.

Imports numpy and torch only: data workers use it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from arcvideo.model.special import SpecialIds


def frame_ids(grid: int, *, special: SpecialIds) -> Tensor:
    """Return the ids of one frame, (grid * (grid + 1) + 4,) int64, newline ids not yet replaced."""
    row = [special.image] * grid + [special.newline]
    return torch.tensor([special.img_open, special.image, *row * grid, special.image, special.img_close])


def video_ids(grid: int, *, frames: int, special: SpecialIds) -> Tensor:
    """Return `<vid>` frames `</vid>`, (frames * (grid * (grid + 1) + 4) + 2,) int64, newline ids not yet replaced."""
    body = frame_ids(grid, special=special).repeat(frames)
    return torch.cat([torch.tensor([special.vid_open]), body, torch.tensor([special.vid_close])])


def replace_newlines(ids: Tensor, *, special: SpecialIds) -> Tensor:
    """Return `ids` with newline ids turned into image ids: what the model reads."""
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
