"""The picture stream: when each frame is shown, and the wanted ones, decoded with as little work as stays exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideData
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from arcvideo.media.errors import MediaError
from arcvideo.media.restart import can_skip_unreferenced, restart_points, starts_whole
from arcvideo.media.settings import MediaLimits
from arcvideo.media.still import on_white
from arcvideo.media.streams import check_pixels, check_tail, in_seconds

_PACKET_IS_FRAME = ("h264", "hevc", "av1", "libdav1d", "vp9", "libvpx-vp9", "mpeg4", "mjpeg", "gif")
"""Decoders whose packets show one frame each; others (VP8 has hidden ones) are counted by decoding."""
_TOLERATED_JITTER = 0.01
"""Seconds beyond one frame's time by which a frame may miss its place in a constant rate (containers round)."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What frame choice needs to know of a video stream."""

    frame_count: int
    fps: float
    """The container's average rate."""
    duration: float
    """Seconds."""
    times: np.ndarray | None = None
    """(frame_count,) float64 seconds from the first frame, when frames do not come at a constant rate."""


Size = tuple[int, int]
"""Height and width of an upright frame of the file."""


def _as_it_is(frame: np.ndarray, slot: int, size: Size) -> np.ndarray:
    return frame


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which frames to take, and what to make of each as soon as it is decoded (whole frames are not kept)."""

    indices: tuple[int, ...]
    """Positions in presentation order; one may stand in several slots."""
    finish: Callable[[np.ndarray, int, Size], np.ndarray] = _as_it_is
    """(frame (H, W, 3) uint8, slot, size in the file) -> what is kept; must not write into the frame."""
    side: int = 0
    """Ask for frames of this height and width, made by swscale as they are converted; who cannot gives whole ones."""


Choose = Callable[[VideoFacts], Selection]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The shown frames of a stream."""

    ticks: tuple[int, ...]
    """Presentation time of each, ascending, in the stream's time base."""
    start: float
    """Seconds of the first, on the file's clock."""
    facts: VideoFacts


def read_timeline(
    packets: list[av.Packet],
    stream: VideoStream,
    *,
    name: str,
    limits: MediaLimits,
    skipped: int = 0,
    strict: bool = True,
) -> Timeline:
    """Return when the frames are shown; read off the packets where each of them shows one frame, so mostly without
    decoding.

    Frames without a time (leading pictures behind a cut, which no player shows) have no place and are left out.

    Args:
        packets: of the stream.
        stream: not decoded from yet.
        name: for messages.
        limits: what the file may cost.
        skipped: frames that the header counts although the file leaves them out on purpose.
        strict: whether what the decoder remarks is an error; see `decode_frames`.

    Raises:
        MediaError: no frames, no times, fewer packets than the header promises, too large or too long.
    """
    codec = stream.codec_context
    check_pixels(codec.width, codec.height, name=name, limits=limits)
    codec.thread_count = limits.decode_threads
    if strict:
        # Damaged picture data is an error here, where the decoder's default is to paint over it.
        codec.options = {"err_detect": "explode"}
    lengths: dict[int, int] = {}
    end, untimed = 0.0, 0
    for item in _shown(packets, stream, name=name, strict=strict):
        time = _time(item)
        if time is None:
            untimed += 1
            continue
        lengths[time] = item.duration or 0
        end = max(end, in_seconds(stream, time + lengths[time]))
    if untimed > len(lengths):
        raise MediaError("unreadable", f"{name}: a video without time stamps (a raw stream?); remux it")
    if not lengths:
        raise MediaError("no_media", f"{name}: the video stream is empty")
    present = skipped + sum(bool(packet.size) or _time(packet) is not None for packet in packets)
    if stream.frames > present:
        raise MediaError("truncated", f"{name}: {present} of {stream.frames} video frames are in the file")
    check_tail(stream, name=name, end=end)
    ticks = tuple(sorted(lengths))
    facts = _facts(stream, ticks, last=lengths[ticks[-1]], name=name, limits=limits)
    return Timeline(ticks=ticks, start=in_seconds(stream, ticks[0]), facts=facts)


def decode_frames(
    packets: list[av.Packet],
    stream: VideoStream,
    *,
    timeline: Timeline,
    chosen: Selection,
    name: str,
    limits: MediaLimits,
    strict: bool = True,
) -> list[np.ndarray]:
    """Return the chosen frames, finished, one per slot.

    Args:
        packets: of the stream.
        stream: the one `timeline` was read from, with the same `strict`.
        timeline: of the stream.
        chosen: which frames, and what becomes of them.
        name: for messages.
        limits: what the file may cost.
        strict: whether whatever the decoder remarks is an error. Otherwise a frame is refused when it, or any other
            that it could lean on, was painted over or did not decode.

    Raises:
        MediaError: one of them, or one it refers to, does not decode.
    """
    slots: dict[int, list[int]] = {}
    for slot, index in enumerate(chosen.indices):
        slots.setdefault(timeline.ticks[index], []).append(slot)
    frames: dict[int, np.ndarray] = {}
    for time, frame in _frames_at(packets, stream, wanted=set(slots), name=name, limits=limits, strict=strict):
        pixels, size = _upright(frame, threads=limits.decode_threads, side=chosen.side)
        frames |= {slot: chosen.finish(pixels, slot, size) for slot in slots[time]}
    if len(frames) < len(chosen.indices):
        missing = len(chosen.indices) - len(frames)
        raise MediaError("corrupt", f"{name}: {missing} of {len(chosen.indices)} wanted frames do not decode")
    return [frames[slot] for slot in range(len(chosen.indices))]


def is_mirrored(packets: list[av.Packet], stream: VideoStream, *, name: str) -> bool:
    """Return whether the file says that its picture is to be mirrored; told by its first frame, as containers do not
    tell.
    """
    a, b, c, d = (1, 0, 0, 1)
    for frame in _all_decoded(packets, stream, name=name):
        a, b, c, d = display_matrix(frame)
        break
    stream.codec_context.flush_buffers()
    return a * d - b * c < 0


def has_alpha(stream: VideoStream) -> bool:
    """Return whether the picture has an opacity."""
    return _is_transparent(stream.codec_context.format)


def _is_transparent(pixels: av.VideoFormat | None) -> bool:
    return pixels is not None and any(component.is_alpha for component in pixels.components)


def _shown(
    packets: list[av.Packet], stream: VideoStream, *, name: str, strict: bool
) -> Iterator[av.Packet | av.VideoFrame]:
    """Return what is shown: packets where each of them is one frame, else the frames that decoding gives."""
    plain = [packet for packet in packets if packet.size and not packet.is_discard]
    if stream.codec_context.name in _PACKET_IS_FRAME:
        # A raw stream has no times at all: decoding would not find any either.
        timed = {_time(packet) is not None for packet in plain} != {True, False}
        if timed and starts_whole(packets, stream):
            return iter(plain)
    return _all_decoded(packets, stream, name=name, strict=strict)


def _all_decoded(
    packets: list[av.Packet], stream: VideoStream, *, name: str, strict: bool = True
) -> Iterator[av.VideoFrame]:
    """Yield every frame; leaves the decoder as if it had seen none."""
    begun = strict
    for packet in (*(packet for packet in packets if packet.size), None):
        for frame in _decoded(packet, codec=stream.codec_context, name=name, begun=begun):
            begun = True
            yield frame
    stream.codec_context.flush_buffers()


def keeps_to(rate: float, *, seconds: np.ndarray) -> bool:
    """Return whether frames shown at these seconds, from 0 on, are at most a frame away from a constant rate."""
    return bool(np.abs(seconds - np.arange(len(seconds)) / rate).max() <= 1 / rate + _TOLERATED_JITTER)


def _facts(stream: VideoStream, ticks: tuple[int, ...], *, last: int, name: str, limits: MediaLimits) -> VideoFacts:
    """Return the average rate where the frames keep to it, as the released code takes it to be; else their times."""
    seconds = np.array([in_seconds(stream, tick - ticks[0]) for tick in ticks])
    rate = float(stream.average_rate or 0)
    if not (math.isfinite(rate) and rate > 0):
        rate = (len(ticks) - 1) / seconds[-1] if seconds[-1] > 0 else 1.0
    duration, times = len(ticks) / rate, None
    if not keeps_to(rate, seconds=seconds):
        times = seconds
        duration = float(seconds[-1]) + (in_seconds(stream, last) or 1 / rate)
    if duration > limits.max_seconds:
        raise MediaError("too_long", f"{name}: {duration:.1f} s, the limit is {limits.max_seconds} s")
    return VideoFacts(frame_count=len(ticks), fps=rate, duration=duration, times=times)


def _frames_at(
    packets: list[av.Packet], stream: VideoStream, *, wanted: set[int], name: str, limits: MediaLimits, strict: bool
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (time stamp, frame) of the wanted time stamps, each once.

    Not decoded are: what lies between the last wanted frame of a closed group of pictures and the next group with a
    wanted one, and frames that no other frame refers to. Neither changes anything in the others.
    """
    codec, skip = stream.codec_context, strict and can_skip_unreferenced(stream)
    groups = list(_groups([packet for packet in packets if packet.size], starts=restart_points(packets, stream)))
    for group in groups:
        # Only codecs with known restart points are cut, and those show their packets' own times.
        awaited = set(wanted) if len(groups) == 1 else {time for packet in group if (time := _time(packet)) in wanted}
        if not awaited:
            continue
        seen: list[int] = []
        taken = spoiled = False
        for packet in (*group, None):  # None: give out what was held back for reordering
            if skip and packet is not None:
                codec.skip_frame = "DEFAULT" if _time(packet) in (None, *awaited) else "NONREF"
            for frame in _decoded(packet, codec=codec, name=name, begun=strict or bool(seen)):
                shown = _time(frame)
                if not strict:
                    seen += [shown] if shown is not None else []
                    # From a key frame to the next any frame may lean on any other, whichever is shown first.
                    whole = frame.key_frame and not frame.is_corrupt
                    taken, spoiled = (False, False) if whole else (taken, spoiled or frame.is_corrupt)
                if (frame.is_corrupt and shown in awaited) or (spoiled and (taken or shown in awaited)):
                    raise MediaError("corrupt", f"{name}: the frame at {frame.time:.2f} s is damaged")
                if shown is None or shown not in awaited:
                    continue
                check_pixels(frame.width, frame.height, name=name, limits=limits)
                awaited.remove(shown)
                taken = taken or not frame.key_frame
                yield shown, frame
            if strict and not awaited:
                break
        if not strict:
            _check_complete(group, seen=seen, name=name)
        codec.flush_buffers()


def _check_complete(packets: Sequence[av.Packet], *, seen: Sequence[int], name: str) -> None:
    """Complain about a packet without its frame, but for those before the first frame shown, which a cut explains."""
    first = min(seen, default=0)
    lost = {time for packet in packets if (time := _time(packet)) is not None and time >= first} - set(seen)
    if lost:
        raise MediaError("corrupt", f"{name}: {len(lost)} frames do not decode")


def _groups(packets: list[av.Packet], *, starts: list[int]) -> Iterator[list[av.Packet]]:
    for first, last in pairwise([*starts, len(packets)]):
        yield packets[first:last]


def _time(item: av.Packet | av.VideoFrame) -> int | None:
    return item.pts if item.pts is not None else item.dts


def _decoded(
    packet: av.Packet | None, *, codec: VideoCodecContext, name: str, begun: bool = True
) -> Sequence[av.VideoFrame]:
    """Return the frames that a packet gives; before the first one (not `begun`) a packet may fail, as behind a cut."""
    try:
        return codec.decode(packet)
    except av.error.InvalidDataError as error:
        if not begun:
            return ()
        raise MediaError("corrupt", f"{name}: the picture data is damaged ({error.strerror})") from error


def _upright(frame: av.VideoFrame, *, threads: int, side: int) -> tuple[np.ndarray, Size]:
    """Return (H, W, 3) uint8, turned and mirrored as the file's display matrix says (phones write vertical video
    turned), and the size that it has in the file; with a side, (side, side, 3).
    """
    how: dict[str, Any] = {"threads": threads}
    if side:
        how |= {"width": side, "height": side, "interpolation": "BICUBIC"}
    if _is_transparent(frame.format):
        pixels = on_white(frame.reformat(format="rgba", **how).to_ndarray())
    else:
        pixels = frame.reformat(format="rgb24", **how).to_ndarray()
    a, b, c, d = display_matrix(frame)
    size = (frame.height, frame.width) if abs(a) >= abs(b) else (frame.width, frame.height)
    if abs(a) >= abs(b):
        turned = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    else:
        turned = pixels.transpose(1, 0, 2)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
    return np.ascontiguousarray(turned), size


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) in 16.16: the pixel at (x, y) is shown at (a x + c y, b x + d y), up to a shift (ISO
    14496-12).
    """
    shown = frame.side_data.get("DISPLAYMATRIX")
    if shown is None:
        return 1 << 16, 0, 0, 1 << 16
    assert isinstance(shown, SideData)
    a, b, _, c, d = np.frombuffer(bytes(shown), dtype=np.int32)[:5].tolist()
    return a, b, c, d
