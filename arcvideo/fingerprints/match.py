"""Which clips of one set are in another: fingerprints laid over each other at every offset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from arcvideo.fingerprints.descriptors import PICTURE_RATE, SOUND_RATE, Prints

ALIKE = 0.9
"""Mean similarity from which two stretches are the same. TinyShorts clips reach 0.45 of a stranger's picture and 0.71
of a stranger's sound, which has the same few words; changed copies reach 0.95 and 0.98 (`benchmarks/overlap.py`)."""
LEAST_SECONDS = 3.0
"""A stretch must be so long, or the shorter clip be nearly whole in it."""
_WHOLE = 0.85
"""Share of the shorter clip that is nearly all of it."""
_FLAT = 4.0
"""Root mean square, of 255, below which a picture shows nothing to know it by."""
_QUIET = 6.0
"""The same of a second of sound, in steps of its levels."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The best place of one clip on another, for picture or sound."""

    alike: float
    """Mean similarity, 1 for the same."""
    offset: float
    """Seconds of the second clip at which the first one begins; below 0 when it begins before."""
    seconds: float
    """Length."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Two clips that are the same over some stretch."""

    first: int
    second: int
    picture: Stretch | None
    sound: Stretch | None

    @property
    def kind(self) -> str:
        """What they share."""
        if self.picture is not None and self.sound is not None:
            return "picture and sound"
        return "picture" if self.picture is not None else "sound"


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Fingerprints of clips, ready to be compared by dot products."""

    rows: np.ndarray
    """(rows, width) float32, each of length 1, or 0 where there is nothing to know a moment by."""
    starts: np.ndarray
    """(clips + 1,) int64: where the rows of each clip begin."""

    def of(self, clip: int) -> np.ndarray:
        """Return the rows of one clip."""
        return self.rows[self.starts[clip] : self.starts[clip + 1]]


def picture_vectors(prints: Sequence[Prints]) -> Vectors:
    """Return the pictures of clips as vectors: without their mean, of length 1."""
    return _joined([_unit(fingerprint.picture.astype(np.float32), least=_FLAT) for fingerprint in prints])


def sound_vectors(prints: Sequence[Prints]) -> Vectors:
    """Return the sounds of clips as vectors: a second of levels each, without what all of the clip has."""
    return _joined([_seconds(fingerprint.sound) for fingerprint in prints])


def overlaps(first: Sequence[Prints], second: Sequence[Prints]) -> list[Overlap]:
    """Return the pairs of clips that are the same over some stretch, in the order of the first.

    Args:
        first: clips that are looked for.
        second: clips that they are looked for in.
    """
    stretches: dict[tuple[int, int], dict[str, Stretch]] = {}
    sides = (("picture", picture_vectors, PICTURE_RATE), ("sound", sound_vectors, SOUND_RATE))
    for name, vectors, rate in sides:
        ours, theirs = vectors(first), vectors(second)
        for pair in _candidates(ours, theirs):
            stretch = best_stretch(ours.of(pair[0]), theirs.of(pair[1]), rate=rate)
            if stretch is not None and stretch.alike >= ALIKE:
                stretches.setdefault(pair, {})[name] = stretch
    return [
        Overlap(first=a, second=b, picture=parts.get("picture"), sound=parts.get("sound"))
        for (a, b), parts in sorted(stretches.items())
    ]


def best_stretch(ours: np.ndarray, theirs: np.ndarray, *, rate: int) -> Stretch | None:
    """Return where one clip fits best on another; None when no stretch is long enough to tell.

    Args:
        ours: (n, width) vectors.
        theirs: (m, width) vectors.
        rate: vectors a second.
    """
    if not len(ours) or not len(theirs):
        return None
    alike = ours @ theirs.T
    seen = (np.abs(ours).max(axis=1) > 0)[:, None] & (np.abs(theirs).max(axis=1) > 0)[None, :]
    # A pair of moments lies on the diagonal of its offset.
    places = np.arange(len(theirs))[None, :] - np.arange(len(ours))[:, None] + len(ours) - 1
    count = len(ours) + len(theirs) - 1
    shared = np.bincount(places.ravel(), weights=seen.ravel(), minlength=count)
    total = np.bincount(places.ravel(), weights=(alike * seen).ravel(), minlength=count)
    shorter = min(int(seen.any(axis=1).sum()), int(seen.any(axis=0).sum()))
    least = max(2.0, min(LEAST_SECONDS * rate, _WHOLE * shorter))
    means = np.where(shared >= least, total / np.maximum(shared, 1), -1.0)
    best = int(means.argmax())
    if means[best] < 0:
        return None
    return Stretch(alike=float(means[best]), offset=(best - len(ours) + 1) / rate, seconds=float(shared[best]) / rate)


def _candidates(ours: Vectors, theirs: Vectors) -> Iterator[tuple[int, int]]:
    """Pairs of clips that have at least one moment alike: no mean is above its best moment."""
    sizes = np.diff(theirs.starts)
    full = np.flatnonzero(sizes)
    if not len(full):
        return
    for clip in range(len(ours.starts) - 1):
        rows = ours.of(clip)
        if len(rows):
            best = np.maximum.reduceat((rows @ theirs.rows.T).max(axis=0), theirs.starts[full])
            yield from ((clip, int(other)) for other in full[best >= ALIKE])


def _joined(parts: Sequence[np.ndarray]) -> Vectors:
    starts = np.cumsum([0, *(len(part) for part in parts)])
    width = max((part.shape[1] for part in parts), default=1)
    rows = np.concatenate([part.reshape(-1, width) for part in parts]) if parts else np.zeros((0, width), np.float32)
    return Vectors(rows=rows.astype(np.float32), starts=starts)


def _unit(rows: np.ndarray, *, least: float) -> np.ndarray:
    """Return rows without their mean and of length 1; zeros where little is left."""
    if not len(rows):
        return rows
    rows = rows - rows.mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(sizes >= least * np.sqrt(rows.shape[1]), rows / np.maximum(sizes, 1e-6), 0.0).astype(np.float32)


def _seconds(levels: np.ndarray) -> np.ndarray:
    """Return (rows, SOUND_RATE * bands): the second that begins at each row; bands without their mean over the clip."""
    bands = levels.shape[1]
    if len(levels) < SOUND_RATE:
        return np.zeros((0, SOUND_RATE * bands), np.float32)
    centred = levels.astype(np.float32) - levels.mean(axis=0, keepdims=True)
    windows = np.lib.stride_tricks.sliding_window_view(centred, SOUND_RATE, axis=0)
    return _unit(windows.reshape(len(windows), -1), least=_QUIET)
