"""Families: a clip's prefix and the questions that share it, cut from what an epoch draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcvideo.planning.cost import PackCost
from arcvideo.planning.pack import greedy_cuts
from arcvideo.planning.table import Ints, attention_pairs, audio_chunks, prefix_tokens
from arcvideo.planning.visits import MODALITY_NAMES, Visits

_ITEMS = ("item", "branch")
"""Columns of items, not of families."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One clip with the items that share its prefix."""

    source: int
    """Which source table."""
    clip: int
    """Clip of that table."""
    items: tuple[int, ...]
    """Items of that table."""
    tokens: int
    """Prefix and branches."""
    modality: str
    """both, video or audio: what is shown of the clip."""
    seed: int
    """For random frames."""


@dataclass(frozen=True, kw_only=True)
class Families:
    """All families of a window as columns; items are a slice of `item`."""

    source: Ints
    clip: Ints
    lo: Ints
    hi: Ints
    prefix: Ints
    tokens: Ints
    frames: Ints
    modality: npt.NDArray[np.int8]
    seed: Ints
    item: Ints
    branch: Ints
    """(items,) length of each entry of `item`."""

    def family(self, number: int) -> Family:
        return Family(
            source=int(self.source[number]),
            clip=int(self.clip[number]),
            items=tuple(self.item[self.lo[number] : self.hi[number]].tolist()),
            tokens=int(self.tokens[number]),
            modality=MODALITY_NAMES[self.modality[number]],
            seed=int(self.seed[number]),
        )

    @property
    def pairs(self) -> npt.NDArray[np.float64]:
        """(F,) query-key pairs of each family."""
        squares = np.concatenate([[0], np.cumsum(self.branch * self.branch)])
        return attention_pairs(self.prefix, self.tokens - self.prefix, squares[self.hi] - squares[self.lo])

    def cost(self, cost: PackCost) -> Ints:
        """Return (F,) work of each family, in tokens' worth; whole numbers add up alike on every machine."""
        chunks = audio_chunks(self.frames, seconds=cost.chunk_seconds)
        work = self.tokens + cost.pair * self.pairs + cost.frame * self.frames + cost.chunk * chunks
        return np.rint(work).astype(np.int64)

    def halved(self, number: int) -> Families:
        """With the second half of a family's items in a new family of the same clip, the last one."""
        columns = {name: np.append(value, value[number]) for name, value in vars(self).items() if name not in _ITEMS}
        lo, hi = self.lo[number], self.hi[number]
        middle = (lo + hi) // 2
        for place, start, stop in ((number, lo, middle), (-1, middle, hi)):
            columns["lo"][place], columns["hi"][place] = start, stop
            columns["tokens"][place] = self.prefix[number] + self.branch[start:stop].sum()
        return Families(item=self.item, branch=self.branch, **columns)


def cut_families(visits: Visits, *, source: int, budget: int) -> Families:
    """Return visits cut into families: by prefix (text before the media; none is shared without), and by the budget."""
    visit = np.repeat(np.arange(len(visits.clip)), np.diff(visits.item_start))
    order = np.lexsort((visits.item, visits.item_rows["group"], visit))
    item, visit, rows = visits.item[order], visit[order], visits.item_rows[order]
    group, branch = rows["group"], rows["branch"].astype(np.int64)
    media = visits.clip_rows["media_tokens"][visit]
    prefix_of_item = prefix_tokens(rows["before"].astype(np.int64), media)
    first = np.ones(len(item), dtype=bool)
    first[1:] = (visit[1:] != visit[:-1]) | (group[1:] != group[:-1]) | (prefix_of_item[1:] == 0)
    lo = np.flatnonzero(first)
    total = prefix_of_item[lo] + _sums(branch, lo)
    hi = np.append(lo[1:], len(item))
    for number in np.flatnonzero(total > budget):
        lengths = branch[lo[number] : hi[number]].tolist()
        cuts = greedy_cuts(lengths, prefix=int(prefix_of_item[lo[number]]), budget=budget)
        first[lo[number] + np.array(cuts)] = True
    lo = np.flatnonzero(first)
    prefix = prefix_of_item[lo]
    return Families(
        source=np.full(len(lo), source),
        clip=visits.clip[visit[lo]],
        lo=lo,
        hi=np.append(lo[1:], len(item)) if len(lo) else lo,
        prefix=prefix,
        tokens=prefix + _sums(branch, lo),
        frames=visits.clip_rows["frames"][visit[lo]].astype(np.int64),
        modality=visits.modality[visit[lo]],
        seed=visits.seed[visit[lo]],
        item=item,
        branch=branch,
    )


def _sums(values: Ints, starts: Ints) -> Ints:
    """Return sums of the runs that begin at these places."""
    return np.add.reduceat(values, starts) if len(starts) else starts


def joined(parts: Sequence[Families]) -> Families:
    """Return families of several sources in one table."""
    offsets = np.cumsum([0] + [len(part.item) for part in parts])
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("source", "clip", "prefix", "tokens", "frames", "modality", "seed", "item", "branch")
    }
    lo = np.concatenate([part.lo + offset for part, offset in zip(parts, offsets, strict=False)])
    hi = np.concatenate([part.hi + offset for part, offset in zip(parts, offsets, strict=False)])
    return Families(lo=lo, hi=hi, **columns)
