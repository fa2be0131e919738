"""The Plan: which items stand in which pack at which global step, known before anything is decoded.

A pure function of (index, mixture, seed, token budget, packs per step, cost of a pack). Ranks, workers, restarts and
bad media do not change it; the position in the data is one integer, the global step.

An epoch of few visits is planned as a whole. A longer one is cut into windows that know nothing of each other and have
a number of steps that is known beforehand: the packs of any step of any epoch are found by planning one window.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from arcvideo.planning.cost import PackCost
from arcvideo.planning.table import SourceTable
from arcvideo.planning.visits import visits_per_epoch
from arcvideo.planning.window import Pack, Recipe, WindowPlan, packed, plan_window, whole, window_families

VISITS = 1 << 16
"""Visits of a window, about: so many that packs are full and steps are alike, so few that a step is found at once."""
_LEAST_STEPS = 4
"""Of a window, so that sorting packs by their cost has something to sort."""
_SLACK = 0.001
"""Share of a window's packs that is left for windows which need a few more than the one that was measured."""
_KEPT = 3
"""Windows in memory: one in use, one being prepared, one that a restart may go back to."""

Place = tuple[int, int, int]
"""Epoch, window of the epoch, step of the window."""


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """How epochs are cut into windows: all alike but the last of an epoch."""

    visits: int
    """Of a window."""
    windows: int
    steps: int
    """Of a window."""
    last_steps: int
    """Of an epoch's last window."""

    @property
    def epoch_steps(self) -> int:
        return (self.windows - 1) * self.steps + self.last_steps


class Plan:
    """Packs by global step; any thread may ask."""

    def __init__(
        self,
        tables: Sequence[SourceTable],
        *,
        seed: int,
        token_budget: int,
        packs_per_step: int,
        cost: PackCost | None = None,
        window: int = VISITS,
    ) -> None:
        """Plan nothing yet.

        Args:
            tables: of the sources.
            seed: of the run.
            token_budget: of a pack.
            packs_per_step: of all ranks.
            cost: how long packs take; None counts tokens alone.
            window: visits of a window, about.
        """
        self.tables = tuple(tables)
        self.cost = cost or PackCost()
        self.seed = seed
        self.token_budget = token_budget
        self.packs_per_step = packs_per_step
        self._recipe = Recipe(
            tables=self.tables, seed=seed, token_budget=token_budget, packs_per_step=packs_per_step, cost=self.cost
        )
        self._window = window
        self._visits = [visits_per_epoch(table) for table in self.tables]
        self._first_steps = [0]
        self._lock = threading.Lock()
        self._plans: dict[tuple[int, int], Future[WindowPlan]] = {}

    def epoch(self, number: int) -> WindowPlan:
        """Return the plan of a whole epoch, which takes long and much memory where it has many windows."""
        return whole([self.window(number, window) for window in range(self.windows)])

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return 1 if self._cut is None else self._cut.windows

    def window(self, epoch: int, number: int) -> WindowPlan:
        """Return the plan of a window of an epoch; the last few are kept."""
        future, is_new = self._promised(epoch, number)
        if is_new:
            self._keep_promise(epoch, number, future)
        return future.result()

    def prepare(self, step: int, submit: Callable[..., object]) -> None:
        """Have the window behind that of a step planned, unless it is.

        Args:
            step: global.
            submit: runs a function with its arguments some time, in another thread.
        """
        epoch, number, _ = self.locate(step)
        following = (epoch, number + 1) if number + 1 < self.windows else (epoch + 1, 0)
        future, is_new = self._promised(*following)
        if is_new:
            submit(self._keep_promise, *following, future)

    def first_step(self, epoch: int) -> int:
        """Steps before an epoch. Epochs of one window differ by a few when only some items of a clip are drawn."""
        if self._cut is not None:
            return epoch * self._cut.epoch_steps
        while len(self._first_steps) <= epoch:
            last = len(self._first_steps) - 1
            self._first_steps.append(self._first_steps[-1] + self.window(last, 0).steps)
        return self._first_steps[epoch]

    def epoch_of(self, step: int) -> int:
        """Return the epoch that a global step belongs to."""
        if step < 0:
            raise ValueError(f"step={step}: must be 0 or more")
        if self._cut is not None:
            return step // self._cut.epoch_steps
        epoch = max(0, int(np.searchsorted(self._first_steps, step, side="right")) - 1)
        while self.first_step(epoch + 1) <= step:
            epoch += 1
        return epoch

    def locate(self, step: int) -> Place:
        """Return the epoch of a global step, the window of that epoch, and the step of that window."""
        epoch = self.epoch_of(step)
        inside = step - self.first_step(epoch)
        if self._cut is None:
            return epoch, 0, inside
        number = min(inside // self._cut.steps, self._cut.windows - 1)
        return epoch, number, inside - number * self._cut.steps

    def step(self, step: int, *, rank: int = 0, world: int = 1) -> list[Pack]:
        """Return the packs of a rank in a global step, every `world`-th."""
        if self.packs_per_step % world:
            raise ValueError(f"data.packs_per_step={self.packs_per_step} is not a multiple of {world} ranks")
        epoch, number, inside = self.locate(step)
        return self.window(epoch, number).step(inside, rank=rank, world=world)

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

    @cached_property
    def _cut(self) -> _Cut | None:
        """How epochs are cut; None when they are planned whole.

        One window is packed to see how many packs so many visits make. A window then takes the visits that fill a
        whole number of steps.
        """
        total, m = sum(self._visits), self.packs_per_step
        if total < 2 * self._window:
            return None
        families = window_families(self._recipe, self._ranges(0, 0, self._window), even=True)
        per_visit = len(packed(self._recipe, families, self.seed, "cut")) / self._window
        steps = max(_LEAST_STEPS, round(per_visit * self._window / m))
        visits = int(steps * m * (1 - _SLACK) / per_visit)
        windows = round(total / visits)
        if windows < 2:
            return None
        last = plan_window(
            self._recipe, self._ranges(0, (windows - 1) * visits, total), self.seed, "last", even=True
        )  # fmt: skip
        return _Cut(visits=visits, windows=windows, steps=steps, last_steps=last.steps)

    def _ranges(self, epoch: int, first: int, last: int) -> list[tuple[int, int]]:
        """Return where each source's stream stands between two places of an epoch, of which it has its share
        anywhere.
        """
        total = sum(self._visits)
        return [(epoch * own + own * first // total, epoch * own + own * last // total) for own in self._visits]

    def _planned(self, epoch: int, number: int) -> WindowPlan:
        cut, total = self._cut, sum(self._visits)
        if cut is None:
            return plan_window(self._recipe, self._ranges(epoch, 0, total), self.seed, epoch)
        is_last = number == cut.windows - 1
        ranges = self._ranges(epoch, number * cut.visits, total if is_last else (number + 1) * cut.visits)
        steps = cut.last_steps if is_last else cut.steps
        return plan_window(self._recipe, ranges, self.seed, epoch, "window", number, steps=steps, even=True)

    def _promised(self, epoch: int, number: int) -> tuple[Future[WindowPlan], bool]:
        """Return what will be the plan of a window, and whether the caller is the one who has to make it."""
        with self._lock:
            promised = self._plans.pop((epoch, number), None)
            future: Future[WindowPlan] = Future() if promised is None else promised
            self._plans[epoch, number] = future  # the last of the dictionary is the one used last
            while len(self._plans) > _KEPT:
                del self._plans[next(iter(self._plans))]
        return future, promised is None

    def _keep_promise(self, epoch: int, number: int, future: Future[WindowPlan]) -> None:
        try:
            future.set_result(self._planned(epoch, number))
        except BaseException as error:
            with self._lock:
                self._plans.pop((epoch, number), None)
            future.set_exception(error)
