"""PyAV and Pillow: bytes -> the wanted frames and a 16 kHz waveform, in numpy (no torch: workers start fast)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image, ImageOps

from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits

SAMPLE_RATE = 16_000
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")
_EXACT_DURATION = ("mov",)
"""Containers whose header tells the duration of each stream, so that a missing tail can be noticed."""
_TAIL_SECONDS = 1.0
_TOLERATED_DELAY = 0.02
_PACKET_IS_FRAME = ("h264", "hevc", "av1", "libdav1d", "vp9", "libvpx-vp9", "mpeg4", "mjpeg", "gif")
"""Decoders whose packets show one frame each; others (VP8 has hidden ones) are counted by decoding."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What frame choice needs to know of a video stream."""

    frame_count: int
    fps: float


def _as_it_is(frame: np.ndarray, slot: int) -> np.ndarray:
    return frame


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which frames to take, and what to make of each as soon as it is decoded (whole frames are not kept)."""

    indices: tuple[int, ...]
    """Positions in presentation order; one may stand in several slots."""
    finish: Callable[[np.ndarray, int], np.ndarray] = _as_it_is
    """(frame (H, W, 3) uint8, slot) -> what is kept; must not write into the frame."""


Choose = Callable[[VideoFacts], Selection]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The chosen frames and the sound of a file; either half may be absent."""

    facts: VideoFacts | None
    frames: list[np.ndarray] | None
    """(H, W, 3) uint8 RGB each, finished, one per slot of the selection."""
    waveform: np.ndarray | None
    """(N,) float32 mono at 16 kHz."""


def decode(data: bytes, *, name: str, choose: Choose, limits: MediaLimits) -> Decoded:
    """Decodes a video, a sound or a still picture.

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
        video, audio = _best_video(container), _best_audio(container)
        if video is None and audio is None:
            raise MediaError("no_media", f"{name}: has neither a video nor an audio stream")
        _check_length(container, name=name, limits=limits)
        packets = _packets(container, video, audio)
        facts, frames, waveform = None, None, None
        if audio is not None:
            waveform = _decode_audio(packets[audio.index], audio, name=name, limits=limits)
            waveform = _delayed(waveform, seconds=_seconds_after(audio, video))
        if video is not None:
            facts, frames = _decode_video(packets[video.index], video, name=name, choose=choose, limits=limits)
    return Decoded(facts=facts, frames=frames, waveform=waveform)


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


def _best_video(container: InputContainer) -> VideoStream | None:
    streams = [stream for stream in container.streams.video if not stream.disposition & stream.disposition.attached_pic]
    best = container.streams.best("video")
    usable = [stream for stream in streams if stream.codec_context is not None]
    return best if best in usable else next(iter(usable), None)


def _best_audio(container: InputContainer) -> AudioStream | None:
    usable = [stream for stream in container.streams.audio if stream.codec_context is not None]
    best = container.streams.best("audio")
    return best if best in usable else next(iter(usable), None)


def _check_length(container: InputContainer, *, name: str, limits: MediaLimits) -> None:
    if container.duration is not None and container.duration / av.time_base > limits.max_seconds:
        seconds = container.duration / av.time_base
        raise MediaError("too_long", f"{name}: {seconds:.1f} s, the limit is {limits.max_seconds} s")


def _seconds_after(audio: AudioStream | None, video: VideoStream | None) -> float:
    """How much later than the picture the sound starts (never negative: early sound is kept)."""
    if audio is None or video is None or audio.start_time is None or video.start_time is None:
        return 0.0
    return max(0.0, _seconds(audio, audio.start_time) - _seconds(video, video.start_time))


def _seconds(stream: AudioStream | VideoStream, ticks: int) -> float:
    return float(ticks * (stream.time_base or 0))


# Sound


def _decode_audio(
    packets: list[av.Packet], stream: AudioStream, *, name: str, limits: MediaLimits
) -> np.ndarray | None:
    """(N,) float32: resampled per channel, then averaged; None when the stream holds no sample.

    The channels are averaged here because the resampler's own downmix does not divide by the channel count.
    """
    resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
    pieces: list[np.ndarray] = []
    end, room = 0.0, int(limits.max_seconds * SAMPLE_RATE)
    stream.codec_context.thread_count = limits.decode_threads
    for packet in packets:
        if packet.pts is not None:
            end = max(end, _seconds(stream, packet.pts + (packet.duration or 0)))
        for frame in packet.decode():
            assert isinstance(frame, av.AudioFrame)
            for resampled in resampler.resample(frame):
                pieces.append(resampled.to_ndarray())
                room -= resampled.samples
        if room < 0:
            raise MediaError("too_long", f"{name}: more than {limits.max_seconds} s of sound")
    pieces += [resampled.to_ndarray() for resampled in resampler.resample(None)]
    _check_tail(stream, name=name, end=end)
    if not pieces:
        return None
    waveform = np.concatenate(pieces, axis=1).mean(axis=0, dtype=np.float32)
    if not np.isfinite(waveform).all():
        raise MediaError("corrupt", f"{name}: the sound has samples that are not numbers")
    return np.clip(waveform, -1.0, 1.0) if waveform.size else None


def _delayed(waveform: np.ndarray | None, *, seconds: float) -> np.ndarray | None:
    """With silence in front; less than a video frame's time is left as it is."""
    if waveform is None or seconds <= _TOLERATED_DELAY:
        return waveform
    return np.concatenate([np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32), waveform])


def _check_tail(stream: AudioStream | VideoStream, *, name: str, end: float) -> None:
    """Complains when a stream stops well before the length that the file's own header gives for it."""
    if stream.duration is not None and stream.container.format.name.startswith(_EXACT_DURATION):
        promised = _seconds(stream, stream.duration + (stream.start_time or 0))
    else:
        promised = _clock_seconds(stream.metadata.get("DURATION", ""))
    if end < promised - _TAIL_SECONDS:
        raise MediaError("truncated", f"{name}: the {stream.type} ends at {end:.2f} s of {promised:.2f} s")


def _clock_seconds(text: str) -> float:
    """Seconds of `HH:MM:SS.fraction`, as Matroska files tag their tracks; 0 for anything else."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else 0.0


# Picture


def _decode_image(data: bytes, *, name: str, choose: Choose, limits: MediaLimits) -> Decoded:
    """A still: one frame that stands for the first second."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_pixels(image.width, image.height, name=name, limits=limits)
            frame = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise MediaError(reason, f"{name}: {error}") from error
    facts = VideoFacts(frame_count=1, fps=1.0)
    chosen = choose(facts)
    frames = [chosen.finish(frame, slot) for slot in range(len(chosen.indices))]
    return Decoded(facts=facts, frames=frames, waveform=None)


def _check_pixels(width: int, height: int, *, name: str, limits: MediaLimits) -> None:
    if width * height > limits.max_pixels:
        raise MediaError("too_large", f"{name}: frames of {width}x{height}, the limit is {limits.max_pixels} pixels")


def _decode_video(
    packets: list[av.Packet], stream: VideoStream, *, name: str, choose: Choose, limits: MediaLimits
) -> tuple[VideoFacts, list[np.ndarray]]:
    """Counts the frames, mostly without decoding, chooses, then decodes up to the last chosen one."""
    codec = stream.codec_context
    _check_pixels(codec.width, codec.height, name=name, limits=limits)
    codec.thread_count = limits.decode_threads
    # Damaged picture data is an error here, where the decoder's default is to paint over it.
    codec.options = {"err_detect": "explode"}
    times = _presentation_times(packets, stream, name=name)
    facts = _facts(stream, times, name=name, limits=limits)
    chosen = choose(facts)
    slots: dict[int, list[int]] = {}
    for slot, index in enumerate(chosen.indices):
        slots.setdefault(times[index], []).append(slot)
    frames: dict[int, np.ndarray] = {}
    for time, frame in _frames_at(packets, stream, wanted=set(slots), name=name, limits=limits):
        frames |= {slot: chosen.finish(frame, slot) for slot in slots[time]}
    if len(frames) < len(chosen.indices):
        missing = len(chosen.indices) - len(frames)
        raise MediaError("corrupt", f"{name}: {missing} of {len(chosen.indices)} wanted frames do not decode")
    return facts, [frames[slot] for slot in range(len(chosen.indices))]


def _presentation_times(packets: list[av.Packet], stream: VideoStream, *, name: str) -> list[int]:
    """Time stamps of all shown frames, sorted; read off the packets where each of them shows one frame."""
    times: set[int] = set()
    end, counted = 0.0, stream.codec_context.name in _PACKET_IS_FRAME
    for item in _plainly_shown(packets) if counted else _all_decoded(packets, stream, name=name):
        time = item.pts if item.pts is not None else item.dts
        if time is None:
            raise MediaError("unreadable", f"{name}: a video without time stamps (a raw stream?); remux it")
        times.add(time)
        end = max(end, _seconds(stream, time + (item.duration or 0)))
    if not times:
        raise MediaError("no_media", f"{name}: the video stream is empty")
    present = sum(bool(packet.size) for packet in packets)
    if stream.frames > present:
        raise MediaError("truncated", f"{name}: {present} of {stream.frames} video frames are in the file")
    _check_tail(stream, name=name, end=end)
    return sorted(times)


def _plainly_shown(packets: list[av.Packet]) -> Iterator[av.Packet]:
    return (packet for packet in packets if packet.size and not packet.is_discard)


def _all_decoded(packets: list[av.Packet], stream: VideoStream, *, name: str) -> Iterator[av.VideoFrame]:
    """Every frame; leaves the decoder as if it had seen none."""
    for packet in packets:
        yield from _decoded(packet, name=name)
    stream.codec_context.flush_buffers()


def _facts(stream: VideoStream, times: list[int], *, name: str, limits: MediaLimits) -> VideoFacts:
    """The container's average rate; a file that states none is measured."""
    rate = float(stream.average_rate or 0)
    if not (math.isfinite(rate) and rate > 0):
        length = _seconds(stream, times[-1] - times[0])
        rate = (len(times) - 1) / length if length > 0 else 1.0
    if len(times) / rate > limits.max_seconds:
        raise MediaError("too_long", f"{name}: {len(times) / rate:.1f} s, the limit is {limits.max_seconds} s")
    return VideoFacts(frame_count=len(times), fps=rate)


def _frames_at(
    packets: list[av.Packet], stream: VideoStream, *, wanted: set[int], name: str, limits: MediaLimits
) -> Iterator[tuple[int, np.ndarray]]:
    """(time stamp, RGB frame) of the wanted time stamps, each once.

    Frames that no other frame refers to are skipped by the decoder unless they are wanted, which changes nothing in
    the others. Only the wanted ones are converted to RGB.
    """
    awaited = set(wanted)
    for packet in packets:
        if not awaited:
            return
        time = packet.pts if packet.pts is not None else packet.dts
        stream.codec_context.skip_frame = "DEFAULT" if time is None or time in wanted else "NONREF"
        for frame in _decoded(packet, name=name):
            shown = frame.pts if frame.pts is not None else frame.dts
            if shown not in awaited:
                continue
            if frame.is_corrupt:
                raise MediaError("corrupt", f"{name}: the frame at {frame.time:.2f} s is damaged")
            _check_pixels(frame.width, frame.height, name=name, limits=limits)
            awaited.remove(shown)
            yield shown, _upright(frame, threads=limits.decode_threads)


def _decoded(packet: av.Packet, *, name: str) -> Sequence[av.VideoFrame]:
    try:
        return packet.decode()
    except av.error.InvalidDataError as error:
        raise MediaError("corrupt", f"{name}: the picture data is damaged ({error.strerror})") from error


def _upright(frame: av.VideoFrame, *, threads: int) -> np.ndarray:
    """(H, W, 3) uint8, turned as the file's display matrix says (phones write vertical video turned)."""
    pixels = frame.reformat(format="rgb24", threads=threads).to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels
