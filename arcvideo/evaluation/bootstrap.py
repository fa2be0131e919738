"""Intervals by bootstrap, seeded, on per-item scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number with its 95 % interval and what guessing reaches."""

    value: float
    low: float
    high: float
    chance: float
    """What the best answer that ignores the clip reaches."""
    n: int
    """Items."""


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0


def interval(
    scores: Sequence[float], *, weights: Sequence[float] | None = None, seed: int = 0, resamples: int = 1000
) -> Interval:
    """Ratio sum(scores) / sum(weights) and its bootstrap interval over items.

    Args:
        scores: per item; for a plain mean leave `weights` out.
        weights: per item, for example reference words when scores are edits.
        seed: of the resampling.
        resamples: number of resamples.

    Raises:
        ValueError: there are no items.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        raise ValueError("no items to compute an interval from")
    sizes = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = values[picks].sum(axis=1) / np.maximum(sizes[picks].sum(axis=1), 1e-12)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.sum() / max(sizes.sum(), 1e-12)), float(low), float(high))


def paired_difference(a: Sequence[float], b: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean of a - b and its bootstrap interval over items.

    Args:
        a: per item, see `predictions.read_scores`.
        b: the other stage's scores of the same items in the same order.
        seed: of the resampling.
        resamples: number of resamples.

    Raises:
        ValueError: the two differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired comparison needs the same items, got {len(a)} and {len(b)}")
    return interval([one - other for one, other in zip(a, b, strict=True)], seed=seed, resamples=resamples)
