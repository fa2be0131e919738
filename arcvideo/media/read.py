"""Bytes -> the arrays of a Clip: choose, decode, stamp, resize. Numpy only, so that it also runs in a bare worker."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from PIL import Image

from arcvideo.media import overlay
from arcvideo.media.decode import decode
from arcvideo.media.errors import MediaError
from arcvideo.media.frames import FramePlan, check_policy, plan_frames, stamp_text, time_spans
from arcvideo.media.picture import Selection, VideoFacts
from arcvideo.media.settings import DECODERS, MediaLimits
from arcvideo.media.sound import SAMPLE_RATE


@dataclass(frozen=True, kw_only=True)
class ReadRequest:
    """How to read a file; with the bytes it determines the result."""

    name: str
    """File name for messages."""
    image_size: int
    max_frames: int
    policy: str = "middle"
    seed: int = 0
    font: str | None = None
    """TrueType file of the time stamp; None takes the bundled one."""
    decoder: str = "pyav"
    """Decoder of the picture."""

    def __post_init__(self) -> None:
        # Here, because inside the decoder a user's mistake would look like a broken file.
        check_policy(self.policy)
        overlay.check_font(self.font)
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder {self.decoder!r}: choose one of {', '.join(DECODERS)}")


@dataclass(frozen=True, kw_only=True)
class ClipArrays:
    """A Clip in numpy."""

    key: str
    frames: np.ndarray | None
    """(F, S, S, 3) uint8."""
    spans: np.ndarray
    """(F, 2) float32."""
    waveform: np.ndarray | None
    """(N,) float32."""
    duration: float


def read_arrays(
    data: bytes, *, request: ReadRequest, limits: MediaLimits, sidecar_audio: bytes | None = None
) -> ClipArrays:
    """Everything that decoding a clip means. `sidecar_audio` is a file whose sound replaces the file's own.

    Raises:
        MediaError: when any part cannot be read as it should be.
    """
    choose = partial(_selection, request=request)
    decoded = decode(data, name=request.name, choose=choose, limits=limits, decoder=request.decoder)
    if sidecar_audio is not None:
        sound = decode(sidecar_audio, name=f"audio of {request.name}", choose=_no_picture, limits=limits)
        if sound.waveform is None:
            raise MediaError("no_media", f"audio of {request.name}: has no sound")
        decoded = replace(decoded, waveform=sound.waveform)
    if decoded.facts is None or decoded.frames is None:
        if decoded.waveform is None:
            raise MediaError("no_media", f"{request.name}: its sound stream holds no samples")
        duration = decoded.waveform.size / SAMPLE_RATE
        spans, frames = time_spans(duration=duration, max_frames=request.max_frames), None
    else:
        duration = decoded.facts.duration
        spans = _plan(decoded.facts, request).spans
        frames = np.stack(decoded.frames)
    return ClipArrays(
        key=clip_key(media_digest(data, sidecar_audio=sidecar_audio), request=request),
        frames=frames,
        spans=np.asarray(spans, dtype=np.float32),
        waveform=decoded.waveform,
        duration=duration,
    )


def media_digest(data: bytes, *, sidecar_audio: bytes | None = None) -> bytes:
    """32 bytes that name the content of a clip's files."""
    parts = [data] if sidecar_audio is None else [data, sidecar_audio]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def clip_key(digest: bytes, *, request: ReadRequest) -> str:
    """Content id: equal keys mean equal arrays. `digest` is that of the media, which an index knows without reading."""
    seed = request.seed if request.policy == "random" else 0
    how: tuple[object, ...] = (
        request.image_size,
        request.max_frames,
        request.policy,
        seed,
        overlay.VERSION,
        _font_id(request.font),
    )
    if request.decoder != "pyav":
        how = (*how, request.decoder)
    return hashlib.sha256(repr(how).encode() + digest).hexdigest()


def resize(frame: np.ndarray, *, size: int) -> np.ndarray:
    """(size, size, 3) uint8: antialiased bicubic; the aspect ratio is not kept."""
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))


def _plan(facts: VideoFacts, request: ReadRequest) -> FramePlan:
    return plan_frames(
        frame_count=facts.frame_count,
        fps=facts.fps,
        times=facts.times,
        duration=facts.duration,
        max_frames=request.max_frames,
        policy=request.policy,
        seed=request.seed,
    )


def _selection(facts: VideoFacts, *, request: ReadRequest) -> Selection:
    plan = _plan(facts, request)

    def finish(frame: np.ndarray, slot: int) -> np.ndarray:
        stamped = frame.copy()
        overlay.stamp(stamped, text=stamp_text(plan.spans[slot]), font=request.font)
        return resize(stamped, size=request.image_size)

    return Selection(indices=plan.indices, finish=finish)


def _no_picture(facts: VideoFacts) -> Selection:
    return Selection(indices=())


@lru_cache(maxsize=8)
def _font_id(font: str | None) -> str:
    if font is None:
        return "bundled"
    with open(font, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
