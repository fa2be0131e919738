"""Families: a clip's prefix and the questions that share it, cut from what an epoch draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcvideo.planning.cost import PackCost
from arcvideo.planning.mixture import Ints, SourceTable
from arcvideo.planning.pack import greedy_cuts
from arcvideo.planning.sizes import attention_pairs, audio_chunks
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
    """All families of an epoch as columns; items are a slice of `item`."""

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


def cut_families(table: SourceTable, visits: Visits, *, source: int, budget: int) -> Families:
    """Visits cut into families: by prefix (text before the media; none is shared without), and by the budget."""
    visit = np.repeat(np.arange(len(visits.clip)), np.diff(visits.item_start))
    order = np.lexsort((visits.item, table.item_group[visits.item], visit))
    item, visit = visits.item[order], visit[order]
    group, branch = table.item_group[item], table.item_branch[item]
    prefix_of_item = table.prefix(item, visits.clip[visit])
    first = np.ones(len(item), dtype=bool)
    first[1:] = (visit[1:] != visit[:-1]) | (group[1:] != group[:-1]) | (prefix_of_item[1:] == 0)
    lo = np.flatnonzero(first)
    total = prefix_of_item[lo] + np.add.reduceat(branch, lo)
    hi = np.append(lo[1:], len(item))
    for number in np.flatnonzero(total > budget):
        lengths = branch[lo[number] : hi[number]].tolist()
        cuts = greedy_cuts(lengths, prefix=int(prefix_of_item[lo[number]]), budget=budget)
        first[lo[number] + np.array(cuts)] = True
    lo = np.flatnonzero(first)
    prefix, clip = prefix_of_item[lo], visits.clip[visit[lo]]
    return Families(
        source=np.full(len(lo), source),
        clip=clip,
        lo=lo,
        hi=np.append(lo[1:], len(item)),
        prefix=prefix,
        tokens=prefix + np.add.reduceat(branch, lo),
        frames=table.frames[clip],
        modality=visits.modality[visit[lo]],
        seed=visits.seed[visit[lo]],
        item=item,
        branch=branch,
    )


def joined(parts: Sequence[Families]) -> Families:
    """Families of several sources in one table."""
    offsets = np.cumsum([0] + [len(part.item) for part in parts])
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("source", "clip", "prefix", "tokens", "frames", "modality", "seed", "item", "branch")
    }
    lo = np.concatenate([part.lo + offset for part, offset in zip(parts, offsets, strict=False)])
    hi = np.concatenate([part.hi + offset for part, offset in zip(parts, offsets, strict=False)])
    return Families(lo=lo, hi=hi, **columns)
