"""Measuring during a run: what is due when, what was best so far, and when it is time to stop."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from arcvideo.evaluation.figures import lower_is_better
from arcvideo.evaluation.settings import LOSS, EvaluationSettings
from arcvideo.measuring.folder import open_measurement
from arcvideo.processes.ranks import World, barrier
from arcvideo.saving.randomness import random_state, restore_random_state
from arcvideo.validation.asking import Figures, HeldOut
from arcvideo.validation.loss import HeldOutLoss

MEASUREMENTS = "evaluations"
"""Folder inside a stage's folder with one folder a measurement."""
BEST_STEP = "eval/best_step"
KEPT = (f"eval/{LOSS}", BEST_STEP)
"""Names in a manifest that come from measuring during the run: a finished stage cannot be measured for them again."""


class PolicyEngine(Protocol):
    """What is needed of `arcvideo.runner.engine.Engine`."""

    model: Any

    def whole_weights(self) -> AbstractContextManager[Any]:
        """Return the model with all weights in place."""
        ...

    def precision(self) -> AbstractContextManager[Any]:
        """Return the arithmetic of a training forward."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Best:
    """A measurement that was better than all before it."""

    step: int
    value: float
    """Of the figure that chooses."""
    known: Mapping[str, float]
    """All that was measured, as the manifest names it."""


class HeldOutCourse:
    """The `Course` of a run: held-out loss and figures every so many steps, and what follows from them."""

    def __init__(
        self,
        settings: EvaluationSettings,
        *,
        engine: PolicyEngine,
        world: World,
        held: HeldOut | None,
        loss: HeldOutLoss | None,
        folder: Path,
        identity: str,
    ) -> None:
        """Take the parts.

        Args:
            settings: when, and what follows.
            engine: holds the model that is trained.
            world: the ranks; all of them measure together.
            held: the held-out questions; None measures the loss only.
            loss: on held-out answers; None leaves it out.
            folder: of the stage.
            identity: of the stage's run.

        Raises:
            ValueError: the figure that chooses has no held-out item.
        """
        self.settings, self.engine, self.world = settings, engine, world
        self.held, self.loss, self.folder, self.identity = held, loss, folder, identity
        name = settings.optimized
        there = loss is not None if name == LOSS else held is not None and bool(held.chosen.get(name))
        if settings.chooses and not there:
            raise ValueError(f"evaluation.optimize={name} chooses the weights, but no held-out item is measured by it")
        self._lower = name == LOSS or (there and lower_is_better(name))
        self._bests: list[_Best] = []
        """Each better than the one before."""
        self._known: dict[str, float] = {}
        """Figures of the weights that come out as things stand."""
        self._since = 0
        """Measurements since the best one."""

    @property
    def over(self) -> bool:
        """Whether so many measurements in a row were not better that training ends."""
        return 0 < self.settings.patience <= self._since

    @property
    def best(self) -> int | None:
        """Steps after which the weights were best, where those are to come out."""
        return next(iter(self.bests), None)

    @property
    def bests(self) -> list[int]:
        """`best`, then those that were the best before it, newest first."""
        return [one.step for one in reversed(self._bests)] if self.settings.best else []

    def take(self, step: int) -> None:
        """Note that the weights after this step come out, because no checkpoint of a better one is there."""
        self._bests = [one for one in self._bests if one.step <= step]
        self._known = dict(self._bests[-1].known)

    def after(
        self, done: int, *, last: bool, say: Callable[[str], None], note: Callable[[str], None]
    ) -> dict[str, float]:
        """Measure after `done` steps if that is due; return the numbers for the log, under their names there."""
        if not last and done % self.settings.every:
            return {}
        began = time.perf_counter()
        before = random_state()
        found = self._measured(done, note=note)
        restore_random_state(before)
        self._judge(done, found)
        told = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in found.items())
        say(f"held out after step {done}: {told}")
        if self.over:
            say(f"training ends: {self._since} measurements in a row were not better (evaluation.patience)")
        return {**found, "time/evaluation": time.perf_counter() - began}

    @torch.no_grad()
    def _measured(self, done: int, *, note: Callable[[str], None]) -> dict[str, float]:
        found: dict[str, float] = {}
        model = self.engine.model
        training = model.training
        with self.engine.whole_weights(), self.engine.precision():
            model.eval()
            try:
                if self.loss is not None:
                    note("measuring the held-out loss")
                    found[f"eval/{LOSS}"] = self.loss.of(model)
                if self.held is not None:
                    figures = self._answered(done, held=self.held, note=note)
                    found |= {f"eval/{name}": row["value"] for name, row in figures.items()}
            finally:
                model.train(training)
        return found

    def _answered(self, done: int, *, held: HeldOut, note: Callable[[str], None]) -> Figures:
        """Ask all questions, into a folder of this step's own."""
        folder = self.folder / MEASUREMENTS / f"step-{done}"
        if self.world.first:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped since: these steps are done again
            origin = {"stage": self.identity, "step": done, "questions": held.source.digest}
            open_measurement(folder, origin=origin, facts=card_facts(held, checkpoint=f"{self.folder}, step {done}"))
        barrier(world=self.world)
        return held.measure(self.engine.model, folder=folder, note=note)

    def _judge(self, done: int, found: Mapping[str, float]) -> None:
        value = found.get(f"eval/{self.settings.optimized}")
        sign = -1 if self._lower else 1
        # A figure that is missing or not a number is never better.
        better = not self._bests or (value is not None and sign * value > sign * self._bests[-1].value)
        if value is not None and value == value and better:
            self._bests.append(_Best(step=done, value=value, known=dict(found)))
            self._since = 0
        else:
            self._since += 1
        if not self.settings.best or self.best == done:
            self._known = dict(found)

    def figures(self) -> dict[str, float]:
        """Return what is known of the weights that come out, under the names of the manifest."""
        return self._known | ({} if self.best is None else {BEST_STEP: float(self.best)})

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-able."""
        return {"bests": [asdict(one) for one in self._bests], "since": self._since, "known": self._known}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there; nothing is known of a run that did not measure."""
        self._bests = [_Best(**one) for one in state.get("bests", ())]
        self._since, self._known = int(state.get("since", 0)), dict(state.get("known", {}))


def card_facts(held: HeldOut, *, checkpoint: str) -> dict[str, Any]:
    """Return what the card of a measurement says besides what decides its answers."""
    return {
        "bench": "held-out",
        "source": held.settings.held_out,
        "data": held.settings.held_out,
        "checkpoint": checkpoint,
        "settings": asdict(held.settings),
        "scoring": held.scoring,
        "holes": [],
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }
