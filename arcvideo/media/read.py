"""Bytes -> the arrays of a Clip: choose, decode, stamp, resize. Numpy only, so that it also runs in a bare worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypedDict, Unpack

import numpy as np
from PIL import Image

from arcvideo.media.decode import decode
from arcvideo.media.errors import MediaError
from arcvideo.media.frames import (
    STAMP_VERSION,
    ChosenFrames,
    check_font,
    check_policy,
    plan_frames,
    stamp,
    stamp_scaled,
    stamp_text,
    time_spans,
)
from arcvideo.media.picture import Selection, Size, VideoFacts
from arcvideo.media.settings import DECODERS, RESIZERS, Layout, MediaLimits
from arcvideo.media.sound import SAMPLE_RATE


@dataclass(frozen=True, kw_only=True)
class ReadRequest:
    """How to read a file; with the bytes it determines the result."""

    name: str
    """File name for messages."""
    image_size: int
    max_frames: int
    policy: str = "middle"
    """Frame of each interval: "middle", or "random" with `seed`."""
    seed: int = 0
    font: str | None = None
    """TrueType file of the time stamp; None takes the bundled one."""
    decoder: str = "pyav"
    """Decoder of the picture."""
    resize: str = "pillow"
    """Who makes frames of the model's size."""
    window: Sequence[float] | None = None
    """Seconds [start, end] of the file that are the clip; None takes all of it. Its times count from `start`."""
    bare: bool = False
    """Also give the frames without their stamps, all of them behind the stamped ones."""
    candidates: int = 0
    """Frames of each interval, evenly spaced, of which somebody will choose; 0 takes the one of `policy`."""

    def __post_init__(self) -> None:
        # Here, because inside the decoder a user's mistake would look like a broken file.
        check_policy(self.policy)
        check_font(self.font)
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder {self.decoder!r}: choose one of {', '.join(DECODERS)}")
        if self.resize not in RESIZERS:
            raise ValueError(f"resize {self.resize!r}: choose one of {', '.join(RESIZERS)}")
        if self.window is not None and not (len(self.window) == 2 and 0 <= self.window[0] < self.window[1]):
            raise ValueError(f"window {self.window}: must be [start, end] in seconds, start before end")


class Reading(TypedDict, total=False):
    """How a file is read, as callers may say it; the fields of `ReadRequest` of the same names."""

    policy: str
    seed: int
    font: str | None
    decoder: str
    resize: str
    window: Sequence[float] | None
    bare: bool
    candidates: int


def read_request(*, name: str, layout: Layout, **how: Unpack[Reading]) -> ReadRequest:
    """Return the plain form of how a file is read."""
    return ReadRequest(name=name, image_size=layout.image_size, max_frames=layout.max_frames, **how)


@dataclass(frozen=True, kw_only=True)
class ClipArrays:
    """A Clip in numpy."""

    key: str
    frames: np.ndarray | None
    """(F, 3, S, S) uint8, with `candidates` so many times F of them; twice as many with `ReadRequest.bare`."""
    spans: np.ndarray
    """(F, 2) float32."""
    waveform: np.ndarray | None
    """(N,) float32."""
    duration: float


def read_arrays(
    data: bytes, *, request: ReadRequest, limits: MediaLimits, sidecar_audio: bytes | None = None
) -> ClipArrays:
    """Return everything that decoding a clip means. `sidecar_audio` is a file whose sound replaces the file's own.

    Raises:
        MediaError: when any part cannot be read as it should be.
    """
    seen = _Seen(request)
    decoded = decode(data, name=request.name, choose=seen.selection, limits=limits, decoder=request.decoder)
    if sidecar_audio is not None:
        sound = decode(sidecar_audio, name=f"audio of {request.name}", choose=_no_picture, limits=limits)
        if sound.waveform is None:
            raise MediaError("no_media", f"audio of {request.name}: has no sound")
        decoded = replace(decoded, waveform=sound.waveform)
    decoded = replace(decoded, waveform=_heard(decoded.waveform, request=request))
    if decoded.facts is None or decoded.frames is None:
        if decoded.waveform is None:
            raise MediaError("no_media", f"{request.name}: its sound stream holds no samples")
        duration = decoded.waveform.size / SAMPLE_RATE
        spans, frames = time_spans(duration=duration, max_frames=request.max_frames), None
    else:
        duration = _shown(decoded.facts, request)[1].duration
        spans = _plan(decoded.facts, request).spans
        frames = seen.frames
    return ClipArrays(
        key=clip_key(media_digest(data, sidecar_audio=sidecar_audio), request=request),
        frames=frames,
        spans=np.asarray(spans, dtype=np.float32),
        waveform=decoded.waveform,
        duration=duration,
    )


def media_digest(data: bytes, *, sidecar_audio: bytes | None = None) -> bytes:
    """Return 32 bytes that name the content of a clip's files."""
    parts = [data] if sidecar_audio is None else [data, sidecar_audio]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def clip_key(digest: bytes, *, request: ReadRequest) -> str:
    """Return content id: equal keys mean equal arrays. `digest` is that of the media, which an index knows without
    reading.
    """
    seed = request.seed if request.policy == "random" else 0
    how: tuple[object, ...] = (
        request.image_size,
        request.max_frames,
        request.policy,
        seed,
        STAMP_VERSION,
        _font_id(request.font),
    )
    if request.decoder != "pyav":
        how = (*how, request.decoder)
    if request.resize != "pillow":
        how = (*how, request.resize)
    if request.window is not None:
        how = (*how, "window", *map(float, request.window))
    if request.candidates:
        how = (*how, "candidates", request.candidates)
    return hashlib.sha256(repr(how).encode() + digest).hexdigest()


def resize(frame: np.ndarray, *, size: int) -> np.ndarray:
    """Return (size, size, 3) uint8: antialiased bicubic; the aspect ratio is not kept."""
    if frame.shape[:2] == (size, size):
        return frame  # what Pillow gives, too
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))


def _shown(facts: VideoFacts, request: ReadRequest) -> tuple[int, VideoFacts]:
    """Return the first frame inside the window, and the facts of the frames there; all of the file without a window.

    Raises:
        MediaError: the window begins behind the last frame.
    """
    if request.window is None:
        return 0, facts
    times = np.arange(facts.frame_count) / facts.fps if facts.times is None else facts.times
    start, end = request.window
    if start >= facts.duration:
        raise MediaError(
            "no_media", f"{request.name}: ends at {facts.duration:.2f} s, before its part begins: {start:g} s"
        )
    # A frame is shown until the next one, so the one before the start may be the first that is seen.
    first = max(int(np.searchsorted(times, start, side="right")) - 1, 0)
    last = max(int(np.searchsorted(times, end, side="left")), first + 1)
    inside = np.maximum(times[first:last] - start, 0.0)
    return first, VideoFacts(
        frame_count=last - first, fps=facts.fps, duration=min(end, facts.duration) - start, times=inside
    )


def _heard(waveform: np.ndarray | None, *, request: ReadRequest) -> np.ndarray | None:
    """Return the sound inside the window; None when there is none."""
    if waveform is None or request.window is None:
        return waveform
    start, end = (round(seconds * SAMPLE_RATE) for seconds in request.window)
    part = waveform[start:end]
    return part.copy() if part.size else None


def _plan(facts: VideoFacts, request: ReadRequest) -> ChosenFrames:
    first, facts = _shown(facts, request)
    plan = _planned(facts, request)
    return replace(plan, indices=tuple(first + index for index in plan.indices))


def _planned(facts: VideoFacts, request: ReadRequest) -> ChosenFrames:
    return plan_frames(
        frame_count=facts.frame_count,
        fps=facts.fps,
        times=facts.times,
        duration=facts.duration,
        max_frames=request.max_frames,
        policy=request.policy,
        seed=request.seed,
        candidates=request.candidates,
    )


class _Seen:
    """The frames that the model sees, written where they stay as soon as they are decoded."""

    def __init__(self, request: ReadRequest) -> None:
        self._request = request
        self.frames: np.ndarray | None = None

    def selection(self, facts: VideoFacts) -> Selection:
        """Return what to take, and make room for it."""
        request, plan = self._request, _plan(facts, self._request)
        count, side = len(plan.indices), request.image_size
        room = np.empty((2 * count if request.bare else count, 3, side, side), dtype=np.uint8)

        def finish(frame: np.ndarray, slot: int, size: Size) -> np.ndarray:
            stamped, text = frame.copy(), stamp_text(plan.spans[slot // (request.candidates or 1)])
            if frame.shape[:2] == size:
                stamp(stamped, text=text, font=request.font)
            else:
                stamp_scaled(stamped, text=text, size=size, font=request.font)
            room[slot] = resize(stamped, size=side).transpose(2, 0, 1)
            if request.bare:
                room[count + slot] = resize(frame, size=side).transpose(2, 0, 1)
            return room[slot]

        self.frames = room
        return Selection(indices=plan.indices, finish=finish, side=side if request.resize == "swscale" else 0)


def _no_picture(facts: VideoFacts) -> Selection:
    return Selection(indices=())


@lru_cache(maxsize=8)
def _font_id(font: str | None) -> str:
    if font is None:
        return "bundled"
    with open(font, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
