"""Steps without an update: a loss or gradient that is not finite, or far outside what the run has seen, or no data."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcvideo.files import cut_torn_row, json_line

_TO_SIGMA = 1.4826
"""Median absolute deviation -> standard deviation of a normal distribution."""
_LOSS_FLOOR = 0.05
"""Least spread assumed of a loss: in GRPO and at the end of memorisation it hardly varies at all, yet one odd clip may
still cost a nat."""
_NORM_FLOOR = 0.2
"""Least spread assumed of the gradient norm, as a share of its median or of the clipping norm."""


class _Window:
    """The last values, in order and sorted, so that their median costs no sorting."""

    def __init__(self, size: int) -> None:
        self.values: deque[float] = deque(maxlen=size)
        self._sorted: list[float] = []

    def append(self, value: float) -> None:
        """Take in a finite value; the oldest leaves when there are too many."""
        if len(self.values) == self.values.maxlen:
            del self._sorted[bisect_left(self._sorted, self.values[0])]
        self.values.append(value)
        insort(self._sorted, value)

    def median(self) -> float:
        """Median; 0 of nothing."""
        if not self._sorted:
            return 0.0
        half = len(self._sorted) // 2
        return self._sorted[half] if len(self._sorted) % 2 else (self._sorted[half - 1] + self._sorted[half]) / 2


class SpikeRule:
    """Robust z-score, (value - median) / (1.4826 MAD), over the last accepted steps; only upwards.

    Median and MAD are not moved by the spikes themselves, unlike mean and standard deviation. The same values give
    the same verdict on every rank.
    """

    def __init__(self, *, z: float, window: int, clip_norm: float = 0.0) -> None:
        """Start empty.

        Args:
            z: score above which a step is refused; 0 refuses nothing.
            window: accepted steps that are looked back on; nothing is judged before a quarter of them are there.
            clip_norm: gradients are clipped to it, so smaller ones cannot hurt.
        """
        self._z, self._least, self._clip = z, max(window // 4, 2), clip_norm
        self._losses, self._norms = _Window(window), _Window(window)

    def loss(self, value: float) -> str | None:
        """Return why a step with this loss is refused; None when it is not."""
        return self._judge("loss", value, seen=self._losses, floor=_LOSS_FLOOR)

    def norm(self, value: float) -> str | None:
        """Return why a step with this gradient norm is refused; None when it is not."""
        floor = _NORM_FLOOR * max(self._norms.median(), self._clip)
        return self._judge("gradient norm", value, seen=self._norms, floor=floor)

    def _judge(self, what: str, value: float, *, seen: _Window, floor: float) -> str | None:
        if not math.isfinite(value):
            return f"{what} is not finite"
        if self._z <= 0 or len(seen.values) < self._least:
            return None
        median = seen.median()
        if value - median <= self._z * floor:
            return None  # whatever the spread, which is the dear part
        spread = max(_TO_SIGMA * statistics.median(abs(old - median) for old in seen.values), floor)
        if value - median <= self._z * spread:
            return None
        return (
            f"{what} {value:.4g} is a spike: median {median:.4g}, spread {spread:.2g}, over runner.spike_z={self._z:g}"
        )

    def accept(self, *, loss: float, norm: float) -> None:
        """Remember the numbers of a step that was applied."""
        self._losses.append(loss)
        self._norms.append(norm)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, JSON-able."""
        return {"losses": list(self._losses.values), "norms": list(self._norms.values)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        for window, values in ((self._losses, state["losses"]), (self._norms, state["norms"])):
            for value in values:
                window.append(value)


class BadNumbers(ValueError):
    """More updates had to be refused than the budget allows."""


class SkippedSteps:
    """The books of steps without an update, in the checkpoint and in skipped.jsonl."""

    def __init__(self, path: Path, *, budget: int, writes: bool) -> None:
        """Start without any.

        Args:
            path: skipped.jsonl.
            budget: updates that may be refused (`runner.skip_budget`).
            writes: whether this rank writes the file.
        """
        self._path, self._budget, self._writes = path, budget, writes
        self._refused: list[int] = []
        self._passed_over: list[int] = []

    @property
    def steps(self) -> list[int]:
        """All of them, in order."""
        return sorted(self._refused + self._passed_over)

    def refuse(self, step: int, *, why: str, keys: Sequence[str], say: Callable[[str], None]) -> None:
        """Book a step whose numbers are bad.

        Raises:
            BadNumbers: the budget is spent.
        """
        self._refused.append(step)
        shown = self._tell(step, why=why, keys=keys, say=say)
        if len(self._refused) > self._budget:
            raise BadNumbers(
                f"{len(self._refused)} steps were skipped, more than runner.skip_budget={self._budget}; "
                f"the last ones: {self._refused[-5:]}; step {step}: {why}, samples {shown}. All: "
                f"{self._path}. Lower optimizer.lr, look at the samples, or raise the budget"
            )

    def pass_over(self, step: int, *, keys: Sequence[str], say: Callable[[str], None]) -> None:
        """Book a step of which nothing could be read; how much may be lost, `data.quarantine` says."""
        self._passed_over.append(step)
        self._tell(step, why="all of its clips are quarantined", keys=keys, say=say)

    def _tell(self, step: int, *, why: str, keys: Sequence[str], say: Callable[[str], None]) -> str:
        """Say it and write it down; returns the first keys as they are shown."""
        shown = ", ".join(keys[:8]) + (" ..." if len(keys) > 8 else "")
        say(f"step {step} skipped, weights unchanged: {why}; samples {shown}")
        if self._writes:
            with self._path.open("a", encoding="ascii") as file:
                cut_torn_row(self._path)
                file.write(json_line({"step": step, "why": why, "samples": list(keys)}, checked=True))
        return shown

    def state(self) -> dict[str, list[int]]:
        """For a checkpoint, JSON-able."""
        return {"refused": self._refused, "passed_over": self._passed_over}

    def restore(self, state: Mapping[str, list[int]]) -> None:
        """Continue from `state`."""
        self._refused, self._passed_over = list(state["refused"]), list(state["passed_over"])
