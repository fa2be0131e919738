"""How long things of a pack are: the arithmetic that the plan, its costs and preflight share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def prefix_tokens(before: Any, media: Any) -> Any:
    """Return the tokens of prefixes: start token, text before the media, media; 0 without media."""
    return np.where(media > 0, 1 + before + media, 0)


def attention_pairs(prefix: Any, branches: Any = 0, squares: Any = 0) -> Any:
    """Return the query-key pairs of families: causal inside each part, and every branch sees the whole prefix.

    Args:
        prefix: tokens.
        branches: tokens of all branches of a family.
        squares: sum of the squares of the branches' tokens.
    """
    whole = np.asarray(prefix, dtype=np.float64)  # columns may be of 32 bits, and squares are not
    return (whole * (whole + 1) + squares + branches) / 2 + branches * whole


def audio_chunks(frames: Any, *, seconds: int) -> Any:
    """Return the chunks of sound of this many seconds that go with frames, of which there is one a second."""
    return -(-frames // seconds)


def ragged(starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return start, start + 1, ... of each start, `sizes` numbers each, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + sizes, sizes)


def frame_counts(duration: np.ndarray, *, max_frames: Any) -> npt.NDArray[np.int64]:
    """Return frames of clips of these lengths in seconds: one a second, at least 1, at most max_frames."""
    return np.clip(np.ceil(duration), 1, max_frames).astype(np.int64)


def frame_shares(seconds: Sequence[float], *, limit: int) -> tuple[int, ...]:
    """Return the frames of each medium of a record: one a second it begins, or its share of `limit`, at least one.

    Args:
        seconds: length of each medium.
        limit: frames of all together; more media than that have one each.
    """
    wanted = frame_counts(np.array(seconds), max_frames=limit)
    more, spare = wanted - 1, max(limit - len(wanted), 0)
    if more.sum() > spare:
        # Whole numbers only: what division leaves goes to the largest remainders, the earlier medium first.
        shares, remainders = np.divmod(more * spare, more.sum())
        shares[np.argsort(-remainders, kind="stable")[: spare - shares.sum()]] += 1
        wanted = 1 + shares
    return tuple(wanted.tolist())
