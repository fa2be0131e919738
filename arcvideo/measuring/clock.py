"""Proof of time: a generated clip whose picture counts its seconds must come back with the right frames and times.

Every second of the clip shows its number as eight black or white stripes, which survive resizing, and beeps as often as
the number has ones. What is read back is what the model will get: after decoding, choosing, stamping and resizing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcvideo.layout import MediaLayout
from arcvideo.media.sound import SAMPLE_RATE
from arcvideo.synthetic.encode import movie

SECONDS, FPS, SIDE, BITS = 12, 10, 256, 8
_BEEP = 0.05
"""Seconds that a beep lasts; as long a pause is behind it."""

_SHOWN = 16
"""Of what was seen or heard, at most so much is told."""


class WrongTimes(ValueError):
    """A clip with a known clock came back with other times than it has."""


def prove_times(
    read_clip: Any, *, layout: MediaLayout, seconds: int = SECONDS, font: str | None = None
) -> dict[str, Any]:
    """Read a generated clip and return what was seen and heard in it.

    Args:
        read_clip: `media.clip.read_clip` or `MediaPool.read_clip`.
        layout: of the model.
        seconds: of the clip.
        font: of the stamps.

    Raises:
        WrongTimes: a frame is of another second than its time says, or the sound is.
    """
    clip = read_clip(clock_video(seconds=seconds), name="the clip with a clock", layout=layout, font=font)
    if clip.frames is None or clip.waveform is None:
        raise WrongTimes("the generated clip with a clock came back without its picture or its sound")
    times = [(float(start), float(end)) for start, end in clip.frame_times]
    seen = [_number(frame) for frame in clip.frames.numpy()]
    heard = [_beeps(clip.waveform.numpy(), second=second) for second in range(seconds)]
    last = times[-1][1]
    if abs(last - seconds) > 1 / FPS:
        raise WrongTimes(
            f"the frames of a clip of {seconds} s with a burnt clock came back with times up to {last:g} s: they do "
            "not cover it, so no answer about time could be right"
        )
    for number, (start, end) in zip(seen, times, strict=True):
        if not start - 1 < number < end:  # the picture of second n is shown until n + 1
            raise WrongTimes(
                f"the frame for {start:g} s to {end:g} s shows second {number} of a clip with a burnt clock (all "
                f"show {_listed(seen)}): frames and times do not belong together, so no answer about time could be "
                "right"
            )
    wrong = [second for second in range(seconds) if heard[second] != second.bit_count()]
    if wrong:
        raise WrongTimes(
            f"second {wrong[0]} of a clip whose sound counts has {heard[wrong[0]]} beeps, not {wrong[0].bit_count()} "
            f"(its seconds have {_listed(heard)}): sound and picture do not belong together"
        )
    return {"seconds": seconds, "frame_times": times, "frames_show": seen, "beeps": heard}


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return shown if len(numbers) <= _SHOWN else f"{shown}, ..."


def clock_video(*, seconds: int = SECONDS) -> bytes:
    """Return an mp4 whose second n shows and sounds n."""
    frames = (_face(number // FPS) for number in range(seconds * FPS))
    return movie(frames, waveform=_sound(seconds), width=SIDE, height=SIDE, fps=FPS)


def _face(second: int) -> np.ndarray:
    """Return (SIDE, SIDE, 3) uint8: stripes over the lower half, below the stamp; the first is the highest bit."""
    bits = [second >> (BITS - 1 - place) & 1 for place in range(BITS)]
    face = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    face[SIDE // 2 :] = np.repeat(np.array(bits, dtype=np.uint8) * 255, SIDE // BITS)[None, :, None]
    return face


def _number(frame: np.ndarray) -> int:
    """Return the second that a (3, S, S) frame shows, read in the middle of each stripe."""
    side = frame.shape[-1]
    row = frame[:, 3 * side // 4].mean(axis=0)
    bits = [int(row[int((place + 0.5) * side / BITS)] > 127) for place in range(BITS)]
    return int("".join(map(str, bits)), 2)


def _sound(seconds: int) -> np.ndarray:
    """Return (n,) float32 at 16 kHz: in second n as many beeps as n has ones."""
    length = int(_BEEP * SAMPLE_RATE)
    beep = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(length) / SAMPLE_RATE)
    sound = np.zeros(seconds * SAMPLE_RATE, dtype=np.float32)
    for second in range(seconds):
        for place in range(second.bit_count()):
            start = second * SAMPLE_RATE + (2 * place + 1) * length
            sound[start : start + length] = beep
    return sound


def _beeps(waveform: np.ndarray, *, second: int) -> int:
    length = int(_BEEP * SAMPLE_RATE)
    part = waveform[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE]
    pieces = part[: len(part) // length * length].reshape(-1, length)
    return int((np.sqrt((pieces**2).mean(axis=1)) > 0.1).sum())
