"""PyAV and Pillow: bytes -> the wanted frames and a 16 kHz waveform, in numpy (no torch: workers start fast)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image, ImageOps

from arcvideo.media.errors import MediaError
from arcvideo.media.fast import fast_frames
from arcvideo.media.picture import Choose, VideoFacts, check_pixels, decode_frames, is_mirrored, read_timeline
from arcvideo.media.settings import MediaLimits
from arcvideo.media.sound import decode_sound
from arcvideo.media.streams import best_audio, best_video

_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The chosen frames and the sound of a file; either half may be absent."""

    facts: VideoFacts | None
    frames: list[np.ndarray] | None
    """(H, W, 3) uint8 RGB each, finished, one per slot of the selection."""
    waveform: np.ndarray | None
    """(N,) float32 mono at 16 kHz."""


def decode(data: bytes, *, name: str, choose: Choose, limits: MediaLimits, decoder: str = "pyav") -> Decoded:
    """Decodes a video, a sound or a still picture.

    Args:
        data: the file.
        name: for messages.
        choose: facts of the video -> which frames, and what to make of each.
        limits: what the file may cost.
        decoder: of the picture, one of `arcvideo.media.fast.DECODERS`.

    Raises:
        MediaError: with the reason; never returns something else in its place.
    """
    if not data:
        raise MediaError("no_media", f"{name}: is empty")
    if len(data) > limits.max_bytes:
        raise MediaError("too_large", f"{name}: {len(data)} bytes, the limit is {limits.max_bytes}")
    _check_riff_size(data, name=name)
    if data.startswith(_IMAGE_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return _decode_image(data, name=name, choose=choose, limits=limits)
    with _opened(data, name) as container:
        video, audio = best_video(container), best_audio(container)
        if video is None and audio is None:
            raise MediaError("no_media", f"{name}: has neither a video nor an audio stream")
        _check_length(container, name=name, limits=limits)
        packets = _packets(container, video, audio)
        timeline, frames, waveform = None, None, None
        if video is not None:
            timeline = read_timeline(packets[video.index], video, name=name, limits=limits)
        if audio is not None:
            origin = None if timeline is None else timeline.start
            waveform = decode_sound(packets[audio.index], audio, origin=origin, name=name, limits=limits)
        if video is not None and timeline is not None:
            chosen, own = choose(timeline.facts), packets[video.index]
            if decoder == "torchcodec" and not is_mirrored(own, video, name=name):
                frames = fast_frames(data, video, timeline=timeline, chosen=chosen, name=name, limits=limits)
            if frames is None:
                frames = decode_frames(own, video, timeline=timeline, chosen=chosen, name=name, limits=limits)
    return Decoded(facts=timeline.facts if timeline else None, frames=frames, waveform=waveform)


def _packets(container: InputContainer, *streams: VideoStream | AudioStream | None) -> dict[int, list[av.Packet]]:
    """All packets of the streams, by stream index, each list ending with the empty one that drains its decoder."""
    wanted = [stream for stream in streams if stream is not None]
    packets: dict[int, list[av.Packet]] = {stream.index: [] for stream in wanted}
    for packet in container.demux(wanted):
        packets[packet.stream.index].append(packet)  # packet.stream_index is 0 for draining packets
    return packets


def _check_riff_size(data: bytes, *, name: str) -> None:
    """WAV, AVI and WebP state their own size, which demuxers forgive silently; 0 and all ones mean a live stream."""
    size = int.from_bytes(data[4:8], "little")
    if data[:4] == b"RIFF" and 0 < size < 0xFFFFFFFF and len(data) + 1 < size + 8:  # + 1: an omitted padding byte
        raise MediaError("truncated", f"{name}: {len(data)} of {size + 8} bytes")


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[InputContainer]:
    try:
        # Nothing but the given bytes is ever opened: playlists and concat scripts could name other files or hosts.
        with av.open(io.BytesIO(data), "r", options={"protocol_whitelist": ""}) as container:
            yield container
    except MemoryError as error:
        raise MediaError("too_large", f"{name}: out of memory while decoding") from error
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise MediaError("unreadable", f"{name}: {error}") from error


def _check_length(container: InputContainer, *, name: str, limits: MediaLimits) -> None:
    if container.duration is not None and container.duration / av.time_base > limits.max_seconds:
        seconds = container.duration / av.time_base
        raise MediaError("too_long", f"{name}: {seconds:.1f} s, the limit is {limits.max_seconds} s")


def _decode_image(data: bytes, *, name: str, choose: Choose, limits: MediaLimits) -> Decoded:
    """A still: one frame that stands for the first second."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_pixels(image.width, image.height, name=name, limits=limits)
            frame = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Image.DecompressionBombError as error:
        raise MediaError("too_large", f"{name}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise MediaError(reason, f"{name}: {error}") from error
    facts = VideoFacts(frame_count=1, fps=1.0, duration=1.0)
    chosen = choose(facts)
    frames = [chosen.finish(frame, slot) for slot in range(len(chosen.indices))]
    return Decoded(facts=facts, frames=frames, waveform=None)
