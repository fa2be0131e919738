"""What the loop asks of those it calls, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from arcvideo.objectives.loss import Loss
from arcvideo.types import Batch, Counts, StepData


class BatchSource(Protocol):
    """Where batches come from: a data set, or rollouts of the policy (then it holds the policy itself)."""

    def batches(self, step: int) -> StepData:
        """Return this rank's share of optimizer step `step`: a pure function of the step, and of the policy."""
        ...


class HeldRollouts(Protocol):
    """The one memory a source may have: completions that updates after a checkpoint still need."""

    def held(self, step: int) -> dict[str, Any]:
        """Return what this rank must have again for `batches(step)`, JSON-able, under names no two ranks share."""
        ...

    def take(self, held: Mapping[str, Any]) -> None:
        """Use what all ranks held together, in place of sampling; the ranks may be others than those that sampled."""
        ...


class Objective(Protocol):
    """What is minimised."""

    def __call__(self, given: Any, batch: Batch) -> Loss:
        """Return summed loss of one micro-batch, given (T, V) logits, or `Scores` if it has a method `ask`."""
        ...


class Course(Protocol):
    """What is measured on held-out clips during a run, and what follows from it; alike on all ranks."""

    @property
    def over(self) -> bool:
        """Whether training ends here: it has not become better for too long."""
        ...

    @property
    def best(self) -> int | None:
        """Steps after which the weights were best, where those are to come out."""
        ...

    @property
    def bests(self) -> Sequence[int]:
        """`best`, then those that were the best before it, newest first."""
        ...

    def take(self, step: int) -> None:
        """Note that the weights after this step, one of `bests`, come out."""
        ...

    def after(
        self, done: int, *, last: bool, say: Callable[[str], None], note: Callable[[str], None]
    ) -> dict[str, float]:
        """Measure after `done` steps if that is due; return the numbers for the log, under their names there.

        No generator of random numbers moves by it.

        Args:
            done: finished steps.
            last: whether there are no more of them.
            say: tells a person.
            note: tells the watchdog that something happens.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-able."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


class NoCourse:
    """A run in which nothing is measured."""

    over = False
    best = None
    bests: Sequence[int] = ()

    def take(self, step: int) -> None:
        """Do nothing."""

    def after(
        self, done: int, *, last: bool, say: Callable[[str], None], note: Callable[[str], None]
    ) -> dict[str, float]:
        """Return nothing."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


@runtime_checkable
class Judging(Protocol):
    """An objective that looks at what all ranks summed before the weights move."""

    def judge(self, pairs: Sequence[Mapping[str, Sequence[float]]]) -> Mapping[str, float]:
        """Return further metrics of the step, or raise ValueError; of each rank, metric -> [sum, count]."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run leaves for the manifest."""

    steps: int
    seconds: float
    """Of this process, without what ran before a resume."""
    metrics: dict[str, float]
    """Of the last step that was trained."""
    skipped: list[int]
    """Steps without an update: refused for non-finite numbers or as spikes, or all their clips quarantined."""
    resumed_from: int
    """Steps that were already done when this process started."""
    liveness: dict[str, Any] = field(default_factory=dict)
    """LivenessReport as a dict; empty when switched off."""
    counts: Counts = field(default_factory=dict)
    """Items over all ranks, and from before a resume too."""
    wandb_id: str | None = None
    """Of the W&B run; None without W&B."""
    repeatable: bool = False
    """Whether every training step ran on kernels that repeat their sums."""
