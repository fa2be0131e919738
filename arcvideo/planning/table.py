"""What may be drawn from one source, and how long it is: a row for each clip and each item, in memory or mapped from
files that all ranks of a machine share, and the arithmetic of lengths that the plan, its costs and preflight share."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arcvideo.layout import MediaLayout
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.render import media_length
from arcvideo.shards.index import ShardIndex
from arcvideo.shards.members import Problem
from arcvideo.shards.rows import RowWriter

Ints = npt.NDArray[np.int64]
CLIP_ROW = np.dtype(
    [
        ("item_start", "<i8"), ("item_count", "<i4"), ("shard", "<i4"), ("row", "<i4"), ("frames", "<i4"),
        ("frame_limit", "<i4"), ("media_tokens", "<i4"), ("both", "?"),
    ]
)  # fmt: skip
"""A clip. shard, row: place among the indexes; frames: shown, 0 for text only; frame_limit: frames it may have, the
layout's max_frames or fewer by the policy fewer_frames; media_tokens: from `<vid>` to `</vid>`, 0 for text only; both:
has picture and sound."""
ITEM_ROW = np.dtype(
    [("weight", "<f8"), ("row", "<i4"), ("before", "<i4"), ("branch", "<i4"), ("group", "<i4"), ("task", "<i2")]
)
"""An item. weight: that of its task over the number of items of that task in the clip; row: in the shard's item table;
before: tokens of the text before the media; branch: tokens behind the media; group: items of a clip in the same group
share a prefix; task: position in `tasks`."""
_HELD = 1 << 20
"""Numbers sorted at once."""
_LARGEST = (1 << 20) - 1
"""Numbers from here on are alike to `LargestFirst`: each that is told apart has a count."""
_TOUCHED = 256
"""Rows of a map that are read before its pages are let go: one may bring 2 MiB of the page cache into the process."""


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


def frame_limits(duration: np.ndarray, *, clip: Ints, text: Ints, settings: DataSettings, layout: MediaLayout) -> Ints:
    """Return (C,) most frames each clip may have: the layout's limit, or by the policy fewer_frames as many as fit
    beside the longest of its items; items that would leave fewer than `data.min_frames` do not count, they are dropped.

    Args:
        duration: (C,) seconds.
        clip: (I,) clip of each item.
        text: (I,) tokens of each item that are not media: the start token, the text before the media, the branch.
    """
    limit = np.full(len(duration), layout.max_frames, dtype=np.int64)
    if settings.over_budget == "fewer_frames":
        ends = media_length(0, layout=layout)
        room = (
            (settings.token_budget - text - ends) // (media_length(1, layout=layout) - ends) * layout.frames_per_group
        )
        tight = room < frame_counts(duration, max_frames=layout.max_frames)[clip]
        tight &= room >= settings.min_frames
        np.minimum.at(limit, clip[tight], room[tight])
    return limit


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


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """What may be drawn from one source. C clips, I items; items of a clip stand together, in record order."""

    name: str
    settings: SourceSettings
    indexes: Sequence[ShardIndex]
    clip_rows: np.ndarray
    """(C,) of dtype CLIP_ROW."""
    item_rows: np.ndarray
    """(I,) of dtype ITEM_ROW."""
    by_tokens: np.ndarray | None = None
    """(C,) clips by what a visit is expected to hold, the longest first; None orders them when it is needed."""
    tasks: tuple[str, ...]
    quarantined: tuple[Problem, ...]
    dropped: int
    """Items that exceed the token budget and are left out."""
    shortened: int
    """Clips shown with fewer frames than the layout has for them, so that they fit the token budget."""
    passes: float
    """How often an epoch passes over the source."""
    pass_tokens: float | None = None
    """Tokens that a pass is expected to hold; None counts them when they are asked for."""
    maps: tuple[mmap.mmap, ...] = ()
    """Of rows that lie in files."""

    @property
    def clips(self) -> int:
        return len(self.clip_rows)

    @property
    def items(self) -> int:
        return len(self.item_rows)

    @property
    def clip_shard(self) -> Ints:
        """(C,) which of `indexes`."""
        return self.clip_rows["shard"]

    @property
    def clip_row(self) -> Ints:
        """(C,) row in that index."""
        return self.clip_rows["row"]

    @property
    def frames(self) -> Ints:
        """(C,) frames shown; 0 for text only."""
        return self.clip_rows["frames"]

    @property
    def frame_limit(self) -> Ints:
        """(C,) frames a clip may have."""
        return self.clip_rows["frame_limit"]

    @property
    def media_tokens(self) -> Ints:
        """(C,) tokens from `<vid>` to `</vid>`; 0 for text only."""
        return self.clip_rows["media_tokens"]

    @property
    def both(self) -> npt.NDArray[np.bool_]:
        """(C,) has picture and sound."""
        return self.clip_rows["both"]

    @property
    def item_start(self) -> Ints:
        """(C + 1,) cumulative item counts; a copy of the whole column."""
        return np.append(self.clip_rows["item_start"], self.items)

    @property
    def item_row(self) -> Ints:
        """(I,) row in the shard's item table."""
        return self.item_rows["row"]

    @property
    def item_task(self) -> Ints:
        """(I,) position in `tasks`."""
        return self.item_rows["task"]

    @property
    def item_weight(self) -> npt.NDArray[np.float64]:
        """(I,) task weight over the number of items of that task in the clip."""
        return self.item_rows["weight"]

    @property
    def item_before(self) -> Ints:
        """(I,) tokens of the text before the media."""
        return self.item_rows["before"]

    @property
    def item_branch(self) -> Ints:
        """(I,) tokens behind the media."""
        return self.item_rows["branch"]

    @property
    def item_group(self) -> Ints:
        """(I,) items of a clip in the same group share a prefix."""
        return self.item_rows["group"]

    @property
    def item_clip(self) -> Ints:
        """(I,) clip of each item; a new column."""
        return np.repeat(np.arange(self.clips), self.clip_rows["item_count"])

    def place(self, clip: int) -> tuple[ShardIndex, int]:
        """Return the index of a clip's shard, and the clip's row in it."""
        row = self.clip_rows[clip]
        return self.indexes[int(row["shard"])], int(row["row"])

    def key(self, clip: int) -> str:
        index, row = self.place(clip)
        return index.key(row)

    def take_clips(self, clips: Ints) -> np.ndarray:
        """Return the rows of these clips, of dtype CLIP_ROW, without keeping the pages they lie in."""
        return self._taken(self.clip_rows, clips)

    def take_items(self, items: Ints) -> np.ndarray:
        """Return the rows of these items, of dtype ITEM_ROW, without keeping the pages they lie in."""
        return self._taken(self.item_rows, items)

    def take_by_tokens(self, places: Ints) -> Ints:
        """Return which clips stand at these places when the longest visit comes first."""
        if self.by_tokens is None:
            return largest_first(visit_tokens(self.clip_rows, self.item_rows, settings=self.settings))[places]
        return self._taken(self.by_tokens, places).astype(np.int64)

    def _taken(self, rows: np.ndarray, numbers: Ints) -> np.ndarray:
        if not self.maps:
            return rows[numbers]
        taken = np.empty(len(numbers), dtype=rows.dtype)
        rising = np.argsort(numbers, kind="stable")  # rows that lie together bring their pages once
        for start in range(0, len(numbers), _TOUCHED):
            part = rising[start : start + _TOUCHED]
            taken[part] = rows[numbers[part]]
            for pages in self.maps:
                pages.madvise(mmap.MADV_DONTNEED)
        return taken

    def prefix(self, item: Ints, clip: Ints) -> Ints:
        """Return the tokens before the branch of each item, 0 for text only; `clip` holds the clips of the items."""
        return prefix_tokens(self.item_before[item].astype(np.int64), self.media_tokens[clip])

    @property
    def tokens(self) -> Ints:
        """(I,) tokens of each item alone with its prefix."""
        media = np.repeat(self.media_tokens, self.clip_rows["item_count"])
        return prefix_tokens(self.item_before.astype(np.int64), media) + self.item_branch


def visit_tokens(clip_rows: np.ndarray, item_rows: np.ndarray, *, settings: SourceSettings) -> Ints:
    """Return (C,) tokens that a visit of each clip is expected to hold, rounded: its prefix once, and the items drawn.

    Whole numbers, so that sums of parts are those of the whole.
    """
    items = clip_rows["item_count"]
    drawn = np.minimum(items, settings.items_per_clip or items)
    start = clip_rows["item_start"] - clip_rows["item_start"][:1]
    branch = np.add.reduceat(item_rows["branch"].astype(np.int64), start) * drawn / items
    before = np.add.reduceat(item_rows["before"].astype(np.int64), start) / items
    return np.rint(prefix_tokens(before, clip_rows["media_tokens"]) + branch).astype(np.int64)


class LargestFirst:
    """Places of numbers that come piece by piece, ordered by the numbers: the same as `largest_first` of them all."""

    def __init__(self) -> None:
        self._spill = tempfile.TemporaryFile()  # noqa: SIM115 - until the order is asked for
        self._counts = np.zeros(_LARGEST + 1, dtype=np.int64)

    def add(self, numbers: Ints) -> None:
        """Take the next numbers, of 0 or more."""
        values = np.minimum(numbers, _LARGEST)
        counts = np.bincount(values)
        self._counts[: len(counts)] += counts
        values.astype(np.uint32).tofile(self._spill)

    def order(self, *, held: int = _HELD) -> npt.NDArray[np.uint32]:
        """Return the places, those of the largest numbers first, of equal ones in the order they came.

        Args:
            held: numbers read at once.
        """
        order = np.empty(int(self._counts.sum()), dtype=np.uint32)
        free = len(order) - np.cumsum(self._counts)  # where the next of each value goes
        self._spill.seek(0)
        for first in range(0, len(order), held):
            values = np.fromfile(self._spill, dtype=np.uint32, count=held).astype(np.int64)
            inside = largest_first(values)
            falling = -values[inside]
            rank = np.arange(len(values)) - np.searchsorted(falling, falling)
            order[free[-falling] + rank] = first + inside
            counts = np.bincount(values)
            free[: len(counts)] += counts
        self._spill.close()
        return order


def largest_first(numbers: Ints) -> Ints:
    """Return the places of numbers of 0 or more, those of the largest first, of equal ones in the order they stand."""
    return np.argsort(-np.minimum(numbers, _LARGEST), kind="stable")


class TableWriter:
    """Rows of a table on their way to the disk, shard by shard."""

    def __init__(self, rows: RowWriter) -> None:
        self.rows = rows
        self.order = LargestFirst()
        """Of the clips, by the tokens of a visit."""
        self.tokens = 0
        """Of a pass, expected."""

    def take(self, clips: np.ndarray, items: np.ndarray, *, settings: SourceSettings) -> None:
        """Write the rows of the next shard."""
        if len(clips):
            tokens = visit_tokens(clips, items, settings=settings)
            self.order.add(tokens)
            self.tokens += int(tokens.sum())
            self.rows.append("clips", clips)
            self.rows.append("items", items)
