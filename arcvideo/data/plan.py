"""The Plan: which items stand in which pack at which global step, known before anything is decoded.

A pure function of (index, mixture, seed, token budget, packs per step). Ranks, workers, restarts and bad media do not
change it; the position in the data is one integer, the global step.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcvideo.data.draw import MODALITY_NAMES, Visits, draw_visits, permutation
from arcvideo.data.mixture import Ints, SourceTable
from arcvideo.data.pack import best_fit, greedy_cuts


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


Pack = tuple[Family, ...]


@dataclass(frozen=True, kw_only=True)
class _Families:
    """All families of an epoch as columns; items are a slice of `item`."""

    source: Ints
    clip: Ints
    lo: Ints
    hi: Ints
    prefix: Ints
    tokens: Ints
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


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The packs of one epoch, in order; their number is a multiple of the packs per step."""

    families: _Families
    pack_start: Ints
    """(P + 1,) cumulative counts of families."""
    pack_family: Ints

    @property
    def packs(self) -> int:
        return len(self.pack_start) - 1

    def pack(self, number: int) -> Pack:
        members = self.pack_family[self.pack_start[number] : self.pack_start[number + 1]]
        return tuple(self.families.family(member) for member in members)

    @property
    def tokens(self) -> int:
        return int(self.families.tokens[self.pack_family].sum())


class Plan:
    """Packs by global step."""

    def __init__(self, tables: Sequence[SourceTable], *, seed: int, token_budget: int, packs_per_step: int) -> None:
        self.tables = tuple(tables)
        self.seed = seed
        self.token_budget = token_budget
        self.packs_per_step = packs_per_step
        self._first_steps = [0]
        self._epochs: dict[int, EpochPlan] = {}

    def epoch(self, number: int) -> EpochPlan:
        """The plan of an epoch; the last two are kept."""
        if number not in self._epochs:
            plan = plan_epoch(
                self.tables,
                seed=self.seed,
                epoch=number,
                token_budget=self.token_budget,
                packs_per_step=self.packs_per_step,
            )
            kept = {key: value for key, value in self._epochs.items() if abs(key - number) == 1}
            self._epochs = {**dict(list(kept.items())[-1:]), number: plan}
        return self._epochs[number]

    def first_step(self, epoch: int) -> int:
        """Steps before an epoch. Epochs differ by a few when only some items of a clip are drawn."""
        while len(self._first_steps) <= epoch:
            last = len(self._first_steps) - 1
            steps = self.epoch(last).packs // self.packs_per_step
            self._first_steps.append(self._first_steps[-1] + steps)
        return self._first_steps[epoch]

    def epoch_of(self, step: int) -> int:
        """The epoch that a global step belongs to."""
        if step < 0:
            raise ValueError(f"step={step}: must be 0 or more")
        epoch = max(0, int(np.searchsorted(self._first_steps, step, side="right")) - 1)
        while self.first_step(epoch + 1) <= step:
            epoch += 1
        return epoch

    def step(self, step: int, *, rank: int = 0, world: int = 1) -> list[Pack]:
        """The packs of a rank in a global step, every `world`-th."""
        if self.packs_per_step % world:
            raise ValueError(f"data.packs_per_step={self.packs_per_step} is not a multiple of {world} ranks")
        epoch = self.epoch_of(step)
        first = (step - self.first_step(epoch)) * self.packs_per_step
        plan = self.epoch(epoch)
        return [plan.pack(number) for number in range(first + rank, first + self.packs_per_step, world)]

    def digest(self, steps: int, *, first: int = 0) -> str:
        """Hex digest of the order: sources, clips, items and their packs of `steps` steps."""
        digest = hashlib.sha256()
        for step in range(first, first + steps):
            for pack in self.step(step):
                rows = [
                    (self.tables[family.source].name, self.tables[family.source].key(family.clip), family.items,
                     family.tokens, family.modality, family.seed)
                    for family in pack
                ]  # fmt: skip
                digest.update(repr(rows).encode())
        return digest.hexdigest()


def plan_epoch(
    tables: Sequence[SourceTable], *, seed: int, epoch: int, token_budget: int, packs_per_step: int
) -> EpochPlan:
    """Draws an epoch, packs it, and fills its last step.

    Raises:
        ValueError: the epoch has fewer items than a step has packs.
    """
    parts = [
        _families(table, draw_visits(table, seed=seed, epoch=epoch), source=number, budget=token_budget)
        for number, table in enumerate(tables)
    ]
    families = _joined(parts)
    order = permutation(len(families.clip), seed, epoch, "families")  # which of equal length is packed first
    packs = [order[pack].tolist() for pack in best_fit(families.tokens[order], budget=token_budget)]
    families, packs = _fill_last_step(families, packs, packs_per_step=packs_per_step)
    packs = [packs[number] for number in permutation(len(packs), seed, epoch, "packs")]
    return EpochPlan(
        families=families,
        pack_start=np.concatenate([[0], np.cumsum([len(pack) for pack in packs])]),
        pack_family=np.concatenate([np.array(pack, dtype=np.int64) for pack in packs]),
    )


def _families(table: SourceTable, visits: Visits, *, source: int, budget: int) -> _Families:
    """Visits cut into families: by prefix (text before the media; none is shared without), and by the budget."""
    visit = np.repeat(np.arange(len(visits.clip)), np.diff(visits.item_start))
    order = np.lexsort((visits.item, table.item_group[visits.item], visit))
    item, visit = visits.item[order], visit[order]
    group, branch = table.item_group[item], table.item_branch[item]
    prefix_of_item = _prefix(table, item=item, clip=visits.clip[visit])
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
    prefix = prefix_of_item[lo]
    return _Families(
        source=np.full(len(lo), source),
        clip=visits.clip[visit[lo]],
        lo=lo,
        hi=np.append(lo[1:], len(item)),
        prefix=prefix,
        tokens=prefix + np.add.reduceat(branch, lo),
        modality=visits.modality[visit[lo]],
        seed=visits.seed[visit[lo]],
        item=item,
        branch=branch,
    )


def _prefix(table: SourceTable, *, item: Ints, clip: Ints) -> Ints:
    """Tokens before the branch of each item: start token, text before, media; 0 for text only."""
    media = table.media_tokens[clip]
    return np.where(media > 0, 1 + table.item_before[item] + media, 0)


def _joined(parts: Sequence[_Families]) -> _Families:
    """Families of several sources in one table."""
    offsets = np.cumsum([0] + [len(part.item) for part in parts])
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("source", "clip", "prefix", "tokens", "modality", "seed", "item", "branch")
    }
    lo = np.concatenate([part.lo + offset for part, offset in zip(parts, offsets, strict=False)])
    hi = np.concatenate([part.hi + offset for part, offset in zip(parts, offsets, strict=False)])
    return _Families(lo=lo, hi=hi, **columns)


def _fill_last_step(
    families: _Families, packs: list[list[int]], *, packs_per_step: int
) -> tuple[_Families, list[list[int]]]:
    """Halves the packs with the most items until the last step is full too.

    The alternatives lose or repeat samples. Losses are divided by the weight of all targets of a step, so how they are
    spread over packs changes nothing but speed.
    """
    missing = -len(packs) % packs_per_step
    columns = {name: value.tolist() for name, value in vars(families).items() if name not in ("item", "branch")}
    size = [hi - lo for lo, hi in zip(columns["lo"], columns["hi"], strict=True)]
    heap = [(-sum(size[family] for family in pack), number) for number, pack in enumerate(packs)] if missing else []
    heapq.heapify(heap)
    for _ in range(missing):
        items, number = heapq.heappop(heap)
        if items > -2:
            raise ValueError(
                f"an epoch has fewer items than data.packs_per_step={packs_per_step}; lower it or add data"
            )
        pack = packs[number]
        if len(pack) == 1:
            _halve(columns, pack[0], branch=families.branch)
            pack = [pack[0], len(columns["lo"]) - 1]
        half = (len(pack) + 1) // 2
        packs[number], tail = pack[:half], pack[half:]
        packs.append(tail)
        for place in (number, len(packs) - 1):
            count = sum(columns["hi"][family] - columns["lo"][family] for family in packs[place])
            heapq.heappush(heap, (-count, place))
    if not missing:
        return families, packs
    arrays = {name: np.array(values, dtype=getattr(families, name).dtype) for name, values in columns.items()}
    return _Families(item=families.item, branch=families.branch, **arrays), packs


def _halve(columns: dict[str, list[int]], family: int, *, branch: Ints) -> None:
    """Moves the second half of a family's items into a new family of the same clip, appended at the end."""
    lo, hi = columns["lo"][family], columns["hi"][family]
    middle = (lo + hi) // 2
    for values in columns.values():
        values.append(values[family])
    for number, start, stop in ((family, lo, middle), (len(columns["lo"]) - 1, middle, hi)):
        columns["lo"][number], columns["hi"][number] = start, stop
        columns["tokens"][number] = columns["prefix"][number] + int(branch[start:stop].sum())
