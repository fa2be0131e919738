"""Media files with everything that real ones have: odd clocks, several streams, edit lists, many codecs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

CLOCK = Fraction(1, 1000)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A video stream."""

    frames: Sequence[np.ndarray]
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"preset": "ultrafast", "crf": "10"})
    times: Sequence[float] | None = None
    """Seconds of each frame; None gives `rate` a second."""
    pix_fmt: str = "yuv420p"
    default: bool = True
    rate: int = 4
    """What the container is told."""
    clock: Fraction = CLOCK
    """Time base of the encoder; some formats know only whole frames of their rate."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """An audio stream."""

    runs: Sequence[tuple[float, np.ndarray]]
    """(seconds at which it starts, (channels, n) float32) each."""
    codec: str = "aac"
    rate: int = 16_000
    layout: str = "mono"
    default: bool = True


def write(*streams: Picture | Sound, container: str = "matroska", options: dict[str, str] | None = None) -> bytes:
    """The file's bytes."""
    target = io.BytesIO()
    with av.open(target, "w", format=container, options=options or {}) as out:
        opened = [_picture(out, stream) if isinstance(stream, Picture) else _sound(out, stream) for stream in streams]
        for stream, made in zip(streams, opened, strict=True):
            made.disposition = av.stream.Disposition.default if stream.default else av.stream.Disposition(0)
        for stream, made in zip(streams, opened, strict=True):
            for frame in _pictures(stream) if isinstance(stream, Picture) else _sounds(stream):
                out.mux(made.encode(frame))
            out.mux(made.encode())
    return target.getvalue()


def _picture(out, stream: Picture):
    made = out.add_stream(stream.codec, rate=stream.rate, options=stream.options)
    made.height, made.width = stream.frames[0].shape[:2]
    made.pix_fmt = stream.pix_fmt
    made.codec_context.time_base = stream.clock
    return made


def _sound(out, stream: Sound):
    return out.add_stream(stream.codec, rate=stream.rate, layout=stream.layout)


def _pictures(stream: Picture):
    times = stream.times if stream.times is not None else [number / stream.rate for number in range(len(stream.frames))]
    for time, pixels in zip(times, stream.frames, strict=True):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = round(time / stream.clock), stream.clock
        yield frame


def _sounds(stream: Sound):
    for start, wave in stream.runs:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format="fltp", layout=stream.layout)
        frame.sample_rate, frame.time_base = stream.rate, Fraction(1, stream.rate)
        frame.pts = round(start * stream.rate)
        yield frame


def moving(count: int, *, size: tuple[int, int] = (96, 64), seed: int = 0) -> list[np.ndarray]:
    """A texture that wanders, so that every frame refers to others; size is (width, height)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    base = np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))
    frames = []
    for number in range(count):
        x, y = number % size[0], (2 * number) % size[1]
        frame = base[y : y + size[1], x : x + size[0]].copy()
        at = (5 * number) % (size[0] - 16)
        frame[8:24, at : at + 16] = (number * 16 % 256, 255 - number * 7 % 256, 128)
        frames.append(frame)
    return frames


def box(data: bytes, name: bytes, *, within: int = 0) -> tuple[int, int]:
    """(start of the content, end) of the first MP4 box of this name."""
    at = data.index(name, within)
    return at + 4, at - 4 + int.from_bytes(data[at - 4 : at], "big")


def with_edit(data: bytes, *, entries: Sequence[tuple[int, int]], track: int = 0) -> bytes:
    """The MP4 with the edit list of a track replaced: (duration in movie ticks, media time or -1) each.

    The file must have its index behind the media data, so that offsets stay; sizes of the boxes around are adapted.
    """
    at = 0
    for _ in range(track + 1):
        trak = data.index(b"trak", at) - 4
        at = trak + 8
    size = int.from_bytes(data[trak : trak + 4], "big")
    whole = data[trak : trak + size]
    if b"edts" in whole:
        start = whole.index(b"edts") - 4
        whole = whole[:start] + whole[start + int.from_bytes(whole[start : start + 4], "big") :]
    rows = b"".join(
        length.to_bytes(4, "big") + media.to_bytes(4, "big", signed=True) + (1 << 16).to_bytes(4, "big")
        for length, media in entries
    )
    elst = _boxed(b"elst", bytes(4) + len(entries).to_bytes(4, "big") + rows)
    end = 8 + int.from_bytes(whole[8:12], "big")  # behind tkhd
    whole = _boxed(b"trak", whole[8:end] + _boxed(b"edts", elst) + whole[end:])
    moov = data.index(b"moov") - 4
    assert data.index(b"mdat") < moov
    length = int.from_bytes(data[moov : moov + 4], "big")
    return data[:moov] + _boxed(b"moov", data[moov + 8 : trak] + whole + data[trak + size : moov + length])


def _boxed(name: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + name + content
