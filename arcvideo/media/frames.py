"""Which frames of a video stand for it, one a second or `max_frames` wider intervals, and the time stamp in the top
right corner of each.

The released model was trained with stamps in Arial, which is not free; the bundled DejaVu Sans is a little wider. Give
the path of an Arial file as `font` to feed the released weights the very same pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

POLICIES = ("middle", "random")
_ROUNDED = 1.0
"""Seconds by which sound and picture of a whole file differ in length."""
STAMP_VERSION = 2
"""Part of a clip's key: raise it when a change of pixels comes from here or from how still pictures are read, so that
no cache gives back the pictures of before. 2: pictures of 16 bits are grey where they were white."""
FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"
_MARGIN, _PAD = 20, 10
_FONT_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class ChosenFrames:
    """Frames to take and the time each stands for."""

    indices: tuple[int, ...]
    """Positions in presentation order, one per interval, or all candidates of one after the other's; a very slow video
    repeats some."""
    spans: tuple[tuple[float, float], ...]
    """Seconds [start, end) of each interval."""


def plan_frames(
    *,
    frame_count: int,
    fps: float,
    max_frames: int,
    policy: str = "middle",
    seed: int = 0,
    times: np.ndarray | None = None,
    duration: float | None = None,
    candidates: int = 0,
) -> ChosenFrames:
    """Return one frame per interval, or several, a pure function of its arguments.

    Args:
        frame_count: frames in the stream.
        fps: the container's average frame rate.
        max_frames: up to so many seconds the intervals are whole seconds, beyond they are duration / max_frames.
        policy: "middle" takes (start + end) // 2 of each interval's frames, "random" draws from them with `seed`.
        times: (frame_count,) ascending seconds of the frames when their rate is not constant: they decide which
            frames an interval has, where the released code would take frame k for second k / fps.
        duration: seconds; None means frame_count / fps.
        candidates: take so many frames of each interval, evenly spaced, in place of the one of `policy`.
    """
    check_policy(policy)
    if frame_count < 1 or not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"frame_count={frame_count}, fps={fps}: both must be above 0")
    spans = time_spans(duration=frame_count / fps if duration is None else duration, max_frames=max_frames)
    rng = np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, frame_count]) if policy == "random" else None
    indices = []
    for span in spans:
        start, end = _frames_in(span, frame_count=frame_count, fps=fps, times=times)
        if candidates:
            indices += [start + (2 * number + 1) * (end - start) // (2 * candidates) for number in range(candidates)]
            continue
        indices.append(int(rng.integers(start, end)) if rng is not None else min((start + end) // 2, end - 1))
    return ChosenFrames(indices=tuple(indices), spans=spans)


def _frames_in(span: tuple[float, float], *, frame_count: int, fps: float, times: np.ndarray | None) -> tuple[int, int]:
    """First frame of an interval and the one behind its last; an interval without any has the one still shown."""
    if times is None:
        start = min(int(span[0] * fps), frame_count - 1)
        return start, max(min(int(span[1] * fps), frame_count), start + 1)
    start, end = np.searchsorted(times, span)
    return (int(start), int(end)) if end > start else (max(int(start) - 1, 0), max(int(start), 1))


def check_policy(policy: str) -> None:
    """Refuse an unknown frame policy."""
    if policy not in POLICIES:
        raise ValueError(f"frame policy {policy!r}: choose one of {', '.join(POLICIES)}")


def time_spans(*, duration: float, max_frames: int) -> tuple[tuple[float, float], ...]:
    """Return the intervals of a clip: whole seconds up to `max_frames` of them, else `max_frames` equal parts."""
    if duration <= max_frames:
        return tuple((float(i), float(i + 1)) for i in range(max(1, math.ceil(duration))))
    part = duration / max_frames
    return tuple((i * part, (i + 1) * part) for i in range(max_frames))


def behind_picture(*, sound: float, picture: float) -> float:
    """Return the seconds of sound that nobody hears because the picture has ended; 0 for those that containers round.

    Args:
        sound: its seconds.
        picture: its seconds; there is a second of sound for each that it begins.
    """
    behind = sound - max(1, math.ceil(picture))
    return behind if behind > _ROUNDED else 0.0


def stamp_text(span: tuple[float, float]) -> str:
    """`HH:MM:SS-HH:MM:SS`, each end rounded to whole seconds as in the released training code."""
    return "-".join(_clock(round(seconds)) for seconds in span)


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def stamp(frame: np.ndarray, *, text: str, font: str | None = None) -> None:
    """Draw `text` in white on a black box into `frame`, (H, W, 3) uint8, in place, before any resizing."""
    height, width = frame.shape[:2]
    patch, left, top = _patch(text, width, height, font or str(FONT))
    frame[top : top + patch.shape[0], left : left + patch.shape[1]] = patch


def stamp_scaled(frame: np.ndarray, *, text: str, size: tuple[int, int], font: str | None = None) -> None:
    """Draw as `stamp` does into a frame that was resized already.

    Args:
        frame: (S, S, 3) uint8, written into.
        size: (height, width) that it had.
    """
    patch, left, top = _scaled_patch(text, size, len(frame), font or str(FONT))
    frame[top : top + patch.shape[0], left : left + patch.shape[1]] = patch


def check_font(font: str | None) -> None:
    """Refuse a font file that cannot be drawn with."""
    _face(font or str(FONT), 12)


@lru_cache(maxsize=4096)
def _patch(text: str, width: int, height: int, font: str) -> tuple[np.ndarray, int, int]:
    """Return the box with its text, clipped to the frame, and where its top left corner goes."""
    face = _face(font, max(1, int(_FONT_SHARE * height)))
    x0, y0, x1, y1 = (round(side) for side in face.getbbox(text))
    # + 1: the reference's box includes both of its corners.
    box_width, box_height = x1 - x0 + 2 * _PAD + 1, y1 - y0 + 2 * _PAD + 1
    canvas = Image.new("RGB", (box_width, max(box_height, _PAD + y1 + 1)))
    # As in the reference the text starts at the inner corner although its ink starts y0 lower, so that on tall
    # frames it may pass the lower edge of the box by a pixel or two.
    ImageDraw.Draw(canvas).text((_PAD, _PAD), text, font=face, fill=(255, 255, 255))
    patch = np.asarray(canvas)
    inked = np.flatnonzero(patch.any(axis=(1, 2)))
    rows = max(box_height, int(inked[-1]) + 1 if inked.size else 0)
    left, top = width - (x1 - x0) - _MARGIN - _PAD, _MARGIN - _PAD
    return patch[: min(rows, max(0, height - top)), max(0, -left) :], max(0, left), top


@lru_cache(maxsize=4096)
def _scaled_patch(text: str, size: tuple[int, int], side: int, font: str) -> tuple[np.ndarray, int, int]:
    """Return the box as it looks in the resized frame, to whole pixels, and where its top left corner goes."""
    height, width = size
    patch, left, top = _patch(text, width, height, font)
    x0, x1 = (round(x * side / width) for x in (left, left + patch.shape[1]))
    y0, y1 = (round(y * side / height) for y in (top, top + patch.shape[0]))
    if not patch.size or x0 == x1 or y0 == y1:
        return np.empty((0, 0, 3), np.uint8), 0, 0
    return np.asarray(Image.fromarray(patch).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)), x0, y0


@lru_cache(maxsize=64)
def _face(font: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(font, size)
    except OSError as error:
        raise ValueError(f"stamp font {font}: cannot be read ({error}); give a TrueType file") from error
