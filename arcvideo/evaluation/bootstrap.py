"""Intervals by bootstrap, seeded, on per-item scores; exact ones where all clips agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHARE = (0.0, 1.0)
"""Where a share of clips, an accuracy or an IoU ends."""
DIFFERENCE = (-1.0, 1.0)
"""Where the difference of two shares ends."""


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


def interval(
    scores: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    clips: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    ends: tuple[float, float] = SHARE,
) -> Interval:
    """Return the ratio sum(scores) / sum(weights) and its bootstrap interval over clips.

    Items about one clip are right and wrong together, so whole clips are drawn: items drawn one by one would pass for
    more independent evidence than there is, and the interval would be too narrow.

    Clips that all agree (ten of ten right, or a single clip) leave resamples nothing to vary: the bootstrap would claim
    to be certain. What they do show is that few clips of the kind can differ, at most 1 - 0.025 ** (1 / clips) of all,
    which is the exact interval of Clopper and Pearson (Biometrika 26, 1934; Hanley and Lippman-Hand's "rule of three",
    JAMA 249, 1983). These few may stand anywhere between `ends`: ten of ten is 1.000 [0.692, 1.000]. It is the exact
    one and not Wilson's, which is shorter but covers less than 95 % near the ends for some sizes (Brown, Cai and
    DasGupta, Statistical Science 16, 2001). Figures outside `ends`, which are no shares, keep the bootstrap's; one that
    only can go beyond, as an error rate above 1, is bounded as if it ended there.

    Args:
        scores: per item; for a plain mean leave `weights` out.
        weights: per item, for example reference words when scores are edits.
        clips: per item, the clip that it asks about; without them every item is taken for a clip of its own.
        seed: of the resampling.
        resamples: number of resamples.
        ends: the least and the largest value of a clip, for clips that all agree.

    Raises:
        ValueError: there are no items, or not one weight and clip for each.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        raise ValueError("no items to compute an interval from")
    sizes = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(sizes) != len(values) or (clips is not None and len(clips) != len(values)):
        raise ValueError(f"{len(values)} scores need as many weights and clips")
    if clips is not None:
        number = {clip: place for place, clip in enumerate(dict.fromkeys(clips))}
        groups = [number[clip] for clip in clips]
        values, sizes = (np.bincount(groups, weights=each).astype(np.float64) for each in (values, sizes))
    mean = float(values.sum() / max(sizes.sum(), 1e-12))
    if ends[0] <= mean <= ends[1] and _agree(values, sizes):
        others = 1 - 0.025 ** (1 / len(values))
        return Interval(mean, mean - others * (mean - ends[0]), mean + others * (ends[1] - mean))
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = values[picks].sum(axis=1) / np.maximum(sizes[picks].sum(axis=1), 1e-12)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def _agree(values: NDArray[np.float64], sizes: NDArray[np.float64]) -> bool:
    """Return whether every clip has the same ratio, but for rounding."""
    return bool(sizes.min() > 0 and np.ptp(values / sizes) < 1e-9)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    clips: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Return the difference of two ratios of the same items, sum(a - b) / sum(weights), and its interval over clips.

    Where the difference is the same on every clip (two checkpoints that answer alike), few clips of the kind can show
    another one, but each by up to 1 in either direction: no difference on 10 clips is 0 [-0.308, +0.308], on 300 clips
    [-0.012, +0.012]; see `interval`.

    Args:
        a: per item, see `predictions.read_scores`.
        b: the other stage's scores of the same items in the same order.
        weights: per item, as in `interval`.
        clips: per item, as in `interval`.
        seed: of the resampling.
        resamples: number of resamples.

    Raises:
        ValueError: the two differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired comparison needs the same items, got {len(a)} and {len(b)}")
    differences = [first - other for first, other in zip(a, b, strict=True)]
    return interval(differences, weights=weights, clips=clips, seed=seed, resamples=resamples, ends=DIFFERENCE)
