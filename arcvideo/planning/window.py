"""A window: so many visits that they are packed and balanced among themselves, whatever stands before and behind."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcvideo.planning.cost import PackCost
from arcvideo.planning.families import Families, Family, cut_families, joined
from arcvideo.planning.pack import best_fit
from arcvideo.planning.random_words import permutation
from arcvideo.planning.table import Ints, SourceTable
from arcvideo.planning.visits import visits_at

Pack = tuple[Family, ...]


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """The packs of one window, in order."""

    families: Families
    pack_start: Ints
    """(P + 1,) cumulative counts of families."""
    pack_family: Ints
    pack_cost: Ints
    """(P,) work of each pack, in tokens' worth."""
    step_start: Ints
    """(S + 1,) cumulative counts of packs: a step has `packs_per_step`, or a multiple of them."""

    @property
    def packs(self) -> int:
        return len(self.pack_start) - 1

    @property
    def steps(self) -> int:
        return len(self.step_start) - 1

    @property
    def tokens(self) -> int:
        return int(self.families.tokens.sum())

    def balance(self, world: int) -> float:
        """Return how busy the ranks of a step are, mean over maximum of their work, over all steps; 1 is perfect.

        Ranks wait for each other after every pack (they exchange gradients), so packs are compared one by one.
        """
        turns = self.pack_cost.reshape(-1, world)
        return float(turns.mean() * len(turns) / turns.max(axis=1).sum())

    def pack(self, number: int) -> Pack:
        members = self.pack_family[self.pack_start[number] : self.pack_start[number + 1]]
        return tuple(self.families.family(member) for member in members)

    def step(self, number: int, *, rank: int, world: int) -> list[Pack]:
        """Return the packs of a rank in a step of the window, every `world`-th."""
        first, last = self.step_start[number : number + 2].tolist()
        return [self.pack(pack) for pack in range(first + rank, last, world)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a plan is a function of, besides the place in the data."""

    tables: tuple[SourceTable, ...]
    seed: int
    token_budget: int
    packs_per_step: int
    cost: PackCost


def window_families(recipe: Recipe, ranges: Sequence[tuple[int, int]], *, even: bool) -> Families:
    """Return the families of a window.

    Args:
        recipe: of the plan.
        ranges: of each source, first place of its stream and the place behind the last.
        even: as in `visits_at`.
    """
    return joined(
        [
            cut_families(
                visits_at(table, first=first, last=last, seed=recipe.seed, even=even),
                source=number,
                budget=recipe.token_budget,
            )
            for number, (table, (first, last)) in enumerate(zip(recipe.tables, ranges, strict=True))
        ]
    )


def packed(recipe: Recipe, families: Families, *key: object) -> list[list[int]]:
    """Return which families share a pack; the key decides which of equal length comes first."""
    order = permutation(len(families.clip), *key, "families")
    return [order[pack].tolist() for pack in best_fit(families.tokens[order], budget=recipe.token_budget)]


def plan_window(
    recipe: Recipe, ranges: Sequence[tuple[int, int]], *key: object, steps: int | None = None, even: bool = False
) -> WindowPlan:
    """Draws a window, packs it, fills its last step, and puts packs that take equally long into the same step.

    Args:
        recipe: of the plan.
        ranges: as in `window_families`.
        key: of the window; decides the order of equal ones and of the steps.
        steps: that the window must have; None takes what its packs need. Where they need more, some steps have twice
            the packs, so that the number of steps is known before the window is.
        even: as in `visits_at`.

    Raises:
        ValueError: fewer items than a step has packs.
    """
    m = recipe.packs_per_step
    families = window_families(recipe, ranges, even=even)
    packs = packed(recipe, families, *key)
    least = -(-len(packs) // m) if steps is None else max(steps, -(-len(packs) // m))
    families, packs = _filled(families, packs, wanted=least * m, packs_per_step=m)
    costs = families.cost(recipe.cost)
    pack_costs = np.array([costs[pack].sum() for pack in packs])
    rows = _alike(pack_costs, packs_per_step=m)
    rows = rows[permutation(len(rows), *key, "packs")]
    order = rows.ravel()
    packs = [packs[number] for number in order]
    surplus = 0 if steps is None else len(rows) - steps
    sizes = np.full(len(rows) - surplus, m)
    np.add.at(sizes, np.arange(surplus) % len(sizes), m)
    return WindowPlan(
        families=families,
        pack_start=np.concatenate([[0], np.cumsum([len(pack) for pack in packs])]),
        pack_family=np.concatenate([np.array(pack, dtype=np.int64) for pack in packs]),
        pack_cost=pack_costs[order],
        step_start=np.concatenate([[0], np.cumsum(sizes)]),
    )


def whole(plans: Sequence[WindowPlan]) -> WindowPlan:
    """Return several windows as one."""
    if len(plans) == 1:
        return plans[0]
    offsets = np.cumsum([0] + [len(plan.families.clip) for plan in plans])
    return WindowPlan(
        families=joined([plan.families for plan in plans]),
        pack_start=_laid_end_to_end([plan.pack_start for plan in plans]),
        pack_family=np.concatenate([plan.pack_family + at for plan, at in zip(plans, offsets, strict=False)]),
        pack_cost=np.concatenate([plan.pack_cost for plan in plans]),
        step_start=_laid_end_to_end([plan.step_start for plan in plans]),
    )


def _laid_end_to_end(counts: Sequence[npt.NDArray[np.int64]]) -> Ints:
    """Cumulative counts of the parts as those of the whole."""
    return np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part) for part in counts]))])


def _alike(costs: Ints, *, packs_per_step: int) -> Ints:
    """Return (S, packs_per_step) which packs make a step: neighbours in cost, so that no rank waits for another."""
    steps = np.argsort(-costs, kind="stable").reshape(-1, packs_per_step)
    return steps[np.argsort(steps.min(axis=1))]


def _filled(
    families: Families, packs: list[list[int]], *, wanted: int, packs_per_step: int
) -> tuple[Families, list[list[int]]]:
    """Return halves the packs with the most items until there are as many as wanted.

    The alternatives lose or repeat samples. Losses are divided by the weight of all targets of a step, so how they are
    spread over packs changes nothing but speed.
    """
    missing = wanted - len(packs)
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
