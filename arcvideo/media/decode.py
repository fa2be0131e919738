"""PyAV and Pillow: bytes -> the wanted frames and a 16 kHz waveform, in numpy (no torch: workers start fast)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from arcvideo.media.animation import is_animated_png, is_animated_webp, video_of_webp
from arcvideo.media.errors import MediaError
from arcvideo.media.fast import fast_frames
from arcvideo.media.losses import check_references
from arcvideo.media.picture import Choose, VideoFacts, decode_frames, has_alpha, is_mirrored, read_timeline
from arcvideo.media.riff import check_riff_size, skipped_frames
from arcvideo.media.settings import MediaLimits
from arcvideo.media.sound import decode_sound
from arcvideo.media.still import is_still, read_still
from arcvideo.media.streams import best_audio, best_video, was_piped


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The chosen frames and the sound of a file; either half may be absent."""

    facts: VideoFacts | None
    frames: list[np.ndarray] | None
    """(H, W, 3) uint8 RGB each, finished, one per slot of the selection."""
    waveform: np.ndarray | None
    """(N,) float32 mono at 16 kHz."""


def decode(data: bytes, *, name: str, choose: Choose, limits: MediaLimits, decoder: str = "pyav") -> Decoded:
    """Decode a video, a sound or a still picture.

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
    check_riff_size(data, name=name)
    if is_animated_webp(data):
        data = video_of_webp(data, name=name, limits=limits)
    elif is_still(data) and not is_animated_png(data):
        return _decode_still(data, name=name, choose=choose, limits=limits)
    try:
        return _decode_streams(data, name=name, choose=choose, limits=limits, decoder=decoder, strict=True)
    except MediaError as error:
        if error.reason != "corrupt":
            raise
        # The decoder of H.264 takes remarks about references for errors, such as those to pictures before a cut. So a
        # closer look decides: every frame is decoded, and whatever leans on a damaged one is refused.
        with suppress(MediaError):
            return _decode_streams(data, name=name, choose=choose, limits=limits, decoder="pyav", strict=False)
        raise


def _decode_streams(
    data: bytes, *, name: str, choose: Choose, limits: MediaLimits, decoder: str, strict: bool
) -> Decoded:
    with _opened(data, name) as container:
        video, audio = best_video(container), best_audio(container)
        if video is None and audio is None:
            raise MediaError("no_media", f"{name}: has neither a video nor an audio stream")
        if not strict and (video is None or video.codec_context.name != "h264"):
            raise MediaError("corrupt", f"{name}: a closer look is for H.264 alone")
        if audio is None or not was_piped(audio):
            _check_length(container, name=name, limits=limits)
        packets = _packets(container, video, audio)
        timeline, frames, waveform = None, None, None
        if video is not None:
            skipped = skipped_frames(data, stream=video.index)
            timeline = read_timeline(
                packets[video.index], video, name=name, limits=limits, skipped=skipped, strict=strict
            )
        if audio is not None:
            origin = None if timeline is None else timeline.start
            waveform = decode_sound(packets[audio.index], audio, origin=origin, name=name, limits=limits)
        if video is not None and timeline is not None:
            chosen, own = choose(timeline.facts), packets[video.index]
            check_references(own, video, wanted={timeline.ticks[index] for index in chosen.indices}, name=name)
            if decoder == "torchcodec" and not (has_alpha(video) or is_mirrored(own, video, name=name)):
                frames = fast_frames(data, video, timeline=timeline, chosen=chosen, name=name, limits=limits)
            if frames is None:
                frames = decode_frames(
                    own, video, timeline=timeline, chosen=chosen, name=name, limits=limits, strict=strict
                )
    return Decoded(facts=timeline.facts if timeline else None, frames=frames, waveform=waveform)


def _packets(container: InputContainer, *streams: VideoStream | AudioStream | None) -> dict[int, list[av.Packet]]:
    """Return all packets of the streams, by stream index, each list ending with the empty one that drains its
    decoder.
    """
    wanted = [stream for stream in streams if stream is not None]
    packets: dict[int, list[av.Packet]] = {stream.index: [] for stream in wanted}
    for packet in container.demux(wanted):
        packets[packet.stream.index].append(packet)  # packet.stream_index is 0 for draining packets
    return packets


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[InputContainer]:
    try:
        # Nothing but the given bytes is ever opened: playlists and concat scripts could name other files or hosts.
        with av.open(io.BytesIO(data), "r", options={"protocol_whitelist": ""}) as container:
            yield container
    except MemoryError as error:
        raise MediaError("too_large", f"{name}: out of memory while decoding") from error
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        if _lost_its_table(data):
            raise MediaError("truncated", f"{name}: its table of frames (moov) is missing: it was cut off") from error
        said = error.strerror if isinstance(error, av.error.FFmpegError) else error
        raise MediaError("unreadable", f"{name}: {said}") from error


def _lost_its_table(data: bytes) -> bool:
    """Return whether an MP4 or QuickTime file ends inside of its media, before the table without which none is found.

    Cameras and most writers put that table last.
    """
    at = 0
    while data[4:8] == b"ftyp" and at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
        if kind in (b"moov", b"moof") or size < 8:
            return False
        at += size
    return at > len(data)


def _check_length(container: InputContainer, *, name: str, limits: MediaLimits) -> None:
    if container.duration is not None and container.duration / av.time_base > limits.max_seconds:
        seconds = container.duration / av.time_base
        raise MediaError("too_long", f"{name}: {seconds:.1f} s, the limit is {limits.max_seconds} s")


def _decode_still(data: bytes, *, name: str, choose: Choose, limits: MediaLimits) -> Decoded:
    """Return a still: one frame that stands for the first second."""
    frame = read_still(data, name=name, limits=limits)
    facts = VideoFacts(frame_count=1, fps=1.0, duration=1.0)
    chosen = choose(facts)
    frames = [chosen.finish(frame, slot, frame.shape[:2]) for slot in range(len(chosen.indices))]
    return Decoded(facts=facts, frames=frames, waveform=None)
