"""From the bytes of a clip to its fingerprints: small pictures twice a second, levels of bands sixteen times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arcvideo.media.decode import decode
from arcvideo.media.picture import Selection, Size, VideoFacts
from arcvideo.media.settings import MediaLimits
from arcvideo.media.sound import SAMPLE_RATE

PICTURE_RATE = 2
"""Pictures a second: a copy that begins elsewhere is at most a quarter of a second beside."""
SIDE = 12
"""Cells along each side of a picture."""
SOUND_RATE = 16
"""Rows of energies a second."""
BANDS = 20
_LOWEST, _HIGHEST = 120.0, 4600.0
"""Hertz: what encoders of small rates keep."""
_FLOOR_DB = 40.0
"""Energies so far below the loudest of a clip count as silence."""


@dataclass(frozen=True, kw_only=True)
class Prints:
    """Fingerprints of one clip, as they are stored."""

    picture: np.ndarray
    """(frames, SIDE * SIDE * 3) uint8: means of the cells, RGB."""
    sound: np.ndarray
    """(rows, BANDS) uint8: level of each band in steps of _FLOOR_DB / 255 above the floor."""


def prints_of(data: bytes, *, name: str, sound: bytes | None = None, limits: MediaLimits | None = None) -> Prints:
    """Return the fingerprints of a media file; either part is empty when the file has none.

    Args:
        data: the file.
        name: for messages.
        sound: a file whose sound is used when this one has none.
        limits: what the file may cost.

    Raises:
        MediaError: it cannot be decoded.
    """
    allowed = limits or MediaLimits()
    decoded = decode(data, name=name, choose=_frames, limits=allowed)
    heard = decoded.waveform
    if (heard is None or not heard.size) and sound is not None:
        heard = decode(sound, name=f"{name}, sound", choose=_frames, limits=allowed).waveform
    pictures = np.stack(decoded.frames) if decoded.frames else np.zeros((0, SIDE * SIDE * 3), np.uint8)
    return Prints(picture=pictures, sound=levels(heard) if heard is not None else np.zeros((0, BANDS), np.uint8))


def _frames(facts: VideoFacts) -> Selection:
    count = max(1, round(facts.duration * PICTURE_RATE))
    times = (np.arange(count) + 0.5) / PICTURE_RATE
    if facts.times is not None:
        places = np.searchsorted(facts.times, times, side="right") - 1
    else:
        places = (times * facts.fps).astype(np.int64)
    return Selection(indices=tuple(int(index) for index in np.clip(places, 0, facts.frame_count - 1)), finish=_shrunk)


def _shrunk(frame: np.ndarray, slot: int, size: Size) -> np.ndarray:
    """Return (SIDE * SIDE * 3,) uint8: the mean of each cell."""
    height, width = frame.shape[:2]
    rows = np.linspace(0, height, SIDE + 1).astype(np.int64)
    columns = np.linspace(0, width, SIDE + 1).astype(np.int64)
    if height < SIDE or width < SIDE:  # tiny pictures: cells of at least one pixel
        frame = frame[np.minimum(rows[:-1], height - 1)][:, np.minimum(columns[:-1], width - 1)]
        return frame.reshape(-1).astype(np.uint8)
    sums = np.add.reduceat(np.add.reduceat(frame.astype(np.uint32), rows[:-1], axis=0), columns[:-1], axis=1)
    sizes = np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None]
    return (sums / sizes).round().astype(np.uint8).reshape(-1)


def levels(waveform: np.ndarray) -> np.ndarray:
    """Return the levels of the bands of a sound.

    Args:
        waveform: (samples,) float32 mono at 16 kHz.

    Returns:
        (rows, BANDS) uint8.
    """
    step = SAMPLE_RATE // SOUND_RATE
    size = 4 * step  # neighbours share most of what they hear, so that a copy half a step beside still fits
    if len(waveform) < size:
        return np.zeros((0, BANDS), np.uint8)
    pieces = np.lib.stride_tricks.sliding_window_view(waveform, size)[::step]
    power = np.abs(np.fft.rfft(pieces * np.hanning(size).astype(np.float32), axis=1)) ** 2
    edges = np.geomspace(_LOWEST, _HIGHEST, BANDS + 1) * size / SAMPLE_RATE
    bounds = np.round(edges).astype(np.int64)
    bounds = np.maximum(bounds, bounds[0] + np.arange(BANDS + 1))  # a band has at least one line
    energy = np.add.reduceat(power[:, : bounds[-1]], bounds[:-1], axis=1) / np.diff(bounds)
    decibels = 10 * np.log10(energy + 1e-10)
    above = np.clip(decibels - max(decibels.max() - _FLOOR_DB, -40.0), 0.0, _FLOOR_DB)
    return (above * (255 / _FLOOR_DB)).astype(np.uint8)
