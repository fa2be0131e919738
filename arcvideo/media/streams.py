"""Facts about the streams of an opened file that picture and sound both need."""

from __future__ import annotations

import re

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits

_EXACT_DURATION = ("mov",)
"""Containers whose header tells the duration of each stream, so that a missing tail can be noticed."""
_TAIL_SECONDS = 1.0
_COUNTED = ("aiff", "au", "wav")
"""Containers of one sound whose header counts the samples when they are not compressed."""
_COUNTED_TAIL_SECONDS = 0.1
_PIPED = 0x7F00_0000
"""Bytes from which on such a count is a mark: who writes into a pipe cannot go back and count."""


def best_video(container: InputContainer) -> VideoStream | None:
    """Return the stream a player would show; cover pictures do not count."""
    streams = [stream for stream in container.streams.video if not stream.disposition & stream.disposition.attached_pic]
    best = container.streams.best("video")
    usable = [stream for stream in streams if stream.codec_context is not None]
    return best if best in usable else next(iter(usable), None)


def best_audio(container: InputContainer) -> AudioStream | None:
    """Return the stream a player would play."""
    usable = [stream for stream in container.streams.audio if stream.codec_context is not None]
    best = container.streams.best("audio")
    return best if best in usable else next(iter(usable), None)


def in_seconds(stream: AudioStream | VideoStream, ticks: int) -> float:
    return float(ticks * (stream.time_base or 0))


def check_tail(stream: AudioStream | VideoStream, *, name: str, end: float) -> None:
    """Complain when a stream stops well before the length that the file's own header gives for it.

    Args:
        end: seconds at which the last packet ends.
    """
    counted, kind = _is_counted(stream), stream.container.format.name
    tolerated = _COUNTED_TAIL_SECONDS if counted else _TAIL_SECONDS
    if stream.duration is not None and (counted or kind.startswith(_EXACT_DURATION)):
        promised = 0.0 if was_piped(stream) else in_seconds(stream, stream.duration + (stream.start_time or 0))
    else:
        promised = _clock_seconds(stream.metadata.get("DURATION", ""))
    if end < promised - tolerated:
        raise MediaError("truncated", f"{name}: the {stream.type} ends at {end:.2f} s of {promised:.2f} s")


def was_piped(stream: AudioStream | VideoStream) -> bool:
    """Return whether the length in the header of uncompressed sound means that its writer did not know it."""
    if not _is_counted(stream) or stream.duration is None:
        return False
    return in_seconds(stream, stream.duration) * (stream.codec_context.bit_rate or 0) / 8 >= _PIPED


def _is_counted(stream: AudioStream | VideoStream) -> bool:
    return stream.container.format.name in _COUNTED and stream.codec_context.name.startswith("pcm_")


def check_pixels(width: int, height: int, *, name: str, limits: MediaLimits) -> None:
    """Complain about a frame over the limit."""
    if width * height > limits.max_pixels:
        raise MediaError("too_large", f"{name}: frames of {width}x{height}, the limit is {limits.max_pixels} pixels")


def _clock_seconds(text: str) -> float:
    """Return seconds of `HH:MM:SS.fraction`, as Matroska files tag their tracks; 0 for anything else."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else 0.0
