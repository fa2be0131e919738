"""Which frames of a video stand for it: one a second, or `max_frames` wider intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

POLICIES = ("middle", "random")
_ROUNDED = 1.0
"""Seconds by which sound and picture of a whole file differ in length."""


@dataclass(frozen=True, kw_only=True)
class FramePlan:
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
) -> FramePlan:
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
    return FramePlan(indices=tuple(indices), spans=spans)


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
