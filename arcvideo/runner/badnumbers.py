"""Which steps are refused: a loss or gradient that is not finite, or one far outside what the run has seen."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Any

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
        """Why a step with this loss is refused; None when it is not."""
        return self._judge("loss", value, seen=self._losses, floor=_LOSS_FLOOR)

    def norm(self, value: float) -> str | None:
        """Why a step with this gradient norm is refused; None when it is not."""
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
