"""The Plan: which items stand in which pack at which global step, known before anything is decoded.

A pure function of (index, mixture, seed, token budget, packs per step, cost of a pack). Ranks, workers, restarts and
bad media do not change it; the position in the data is one integer, the global step.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arcvideo.planning.cost import PackCost
from arcvideo.planning.families import Families, Family, cut_families, joined
from arcvideo.planning.mixture import Ints, SourceTable
from arcvideo.planning.pack import best_fit
from arcvideo.planning.random_words import permutation
from arcvideo.planning.visits import draw_visits

Pack = tuple[Family, ...]


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The packs of one epoch, in order; their number is a multiple of the packs per step."""

    families: Families
    pack_start: Ints
    """(P + 1,) cumulative counts of families."""
    pack_family: Ints
    pack_cost: Ints
    """(P,) work of each pack, in tokens' worth."""

    @property
    def packs(self) -> int:
        return len(self.pack_start) - 1

    def balance(self, world: int) -> float:
        """How busy the ranks of a step are, mean over maximum of their work, over all steps; 1 is perfect.

        Ranks wait for each other after every pack (they exchange gradients), so packs are compared one by one.
        """
        turns = self.pack_cost.reshape(-1, world)
        return float(turns.mean() * len(turns) / turns.max(axis=1).sum())

    def pack(self, number: int) -> Pack:
        members = self.pack_family[self.pack_start[number] : self.pack_start[number + 1]]
        return tuple(self.families.family(member) for member in members)

    @property
    def tokens(self) -> int:
        return int(self.families.tokens.sum())


class Plan:
    """Packs by global step."""

    def __init__(
        self,
        tables: Sequence[SourceTable],
        *,
        seed: int,
        token_budget: int,
        packs_per_step: int,
        cost: PackCost | None = None,
    ) -> None:
        self.tables = tuple(tables)
        self.cost = cost or PackCost()
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
                cost=self.cost,
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
    tables: Sequence[SourceTable], *, seed: int, epoch: int, token_budget: int, packs_per_step: int, cost: PackCost
) -> EpochPlan:
    """Draws an epoch, packs it, fills its last step, and puts packs that take equally long into the same step.

    Raises:
        ValueError: the epoch has fewer items than a step has packs.
    """
    parts = [
        cut_families(table, draw_visits(table, seed=seed, epoch=epoch), source=number, budget=token_budget)
        for number, table in enumerate(tables)
    ]
    families = joined(parts)
    order = permutation(len(families.clip), seed, epoch, "families")  # which of equal length is packed first
    packs = [order[pack].tolist() for pack in best_fit(families.tokens[order], budget=token_budget)]
    families, packs = _fill_last_step(families, packs, packs_per_step=packs_per_step)
    costs = families.cost(cost)
    pack_costs = np.array([costs[pack].sum() for pack in packs])
    steps = _steps(pack_costs, packs_per_step=packs_per_step)
    order = steps[permutation(len(steps), seed, epoch, "packs")].ravel()
    packs = [packs[number] for number in order]
    return EpochPlan(
        families=families,
        pack_start=np.concatenate([[0], np.cumsum([len(pack) for pack in packs])]),
        pack_family=np.concatenate([np.array(pack, dtype=np.int64) for pack in packs]),
        pack_cost=pack_costs[order],
    )


def _steps(costs: Ints, *, packs_per_step: int) -> Ints:
    """(S, packs_per_step) which packs make a step: neighbours in cost, so that no rank waits for another."""
    steps = np.argsort(-costs, kind="stable").reshape(-1, packs_per_step)
    return steps[np.argsort(steps.min(axis=1))]


def _fill_last_step(
    families: Families, packs: list[list[int]], *, packs_per_step: int
) -> tuple[Families, list[list[int]]]:
    """Halves the packs with the most items until the last step is full too.

    The alternatives lose or repeat samples. Losses are divided by the weight of all targets of a step, so how they are
    spread over packs changes nothing but speed.
    """
    missing = -len(packs) % packs_per_step
    if not missing:
        return families, packs
    size = families.hi - families.lo
    heap = [(-int(size[pack].sum()), number) for number, pack in enumerate(packs)]
    heapq.heapify(heap)
    for _ in range(missing):
        items, number = heapq.heappop(heap)
        if items > -2:
            raise ValueError(
                f"an epoch has fewer items than data.packs_per_step={packs_per_step}; lower it or add data"
            )
        pack = packs[number]
        if len(pack) == 1:
            families = families.halved(pack[0])
            pack = [pack[0], len(families.lo) - 1]
        half = (len(pack) + 1) // 2
        packs[number], tail = pack[:half], pack[half:]
        packs.append(tail)
        for place in (number, len(packs) - 1):
            heapq.heappush(heap, (-int((families.hi - families.lo)[packs[place]].sum()), place))
    return families, packs
