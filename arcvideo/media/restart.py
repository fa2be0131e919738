"""Where a decoder may start inside a stream, and what it may leave out, without changing any other frame.

A container's key-frame flag is not enough: it also marks places (open groups, intra refresh) whose following frames
refer to earlier ones. So the bitstream's own picture types are read where the flag could mean either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import av
from av.video.stream import VideoStream

_KEY_FRAME_RESETS = ("vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d", "mjpeg", "png")
"""Decoders whose key frames end every reference to what came before."""
_RESETTING_NALS = {"h264": (5,), "hevc": (19, 20)}
"""NAL unit types of an IDR picture (H.264 table 7-1, H.265 table 7-1)."""
_START_CODE = re.compile(rb"\x00\x00\x01")


def restart_points(packets: Sequence[av.Packet], stream: VideoStream) -> list[int]:
    """Ascending positions, 0 first, from which decoding gives the very frames that decoding from the start gives."""
    codec = stream.codec_context
    keys = [number for number, packet in enumerate(packets) if number and packet.size and packet.is_keyframe]
    if codec.name in _RESETTING_NALS:
        wanted, prefix = _RESETTING_NALS[codec.name], length_prefix(codec.name, codec.extradata or b"")
        keys = [number for number in keys if _has_nal(bytes(packets[number]), codec.name, prefix=prefix, types=wanted)]
    elif codec.name not in _KEY_FRAME_RESETS:
        keys = []
    return [0, *keys]


def starts_whole(packets: Sequence[av.Packet], stream: VideoStream) -> bool:
    """Return whether the first picture needs nothing before it, and nothing behind it does either.

    False for a piece that was cut out of a longer stream between open groups of pictures: the decoder then leaves out
    frames at its beginning, and only decoding tells which.
    """
    codec = stream.codec_context
    first = next((packet for packet in packets if packet.size), None)
    if first is None or codec.name not in _RESETTING_NALS:
        return True
    prefix = length_prefix(codec.name, codec.extradata or b"")
    return _has_nal(bytes(first), codec.name, prefix=prefix, types=_RESETTING_NALS[codec.name])


def can_skip_unreferenced(stream: VideoStream) -> bool:
    """Return whether the frames that this decoder calls unreferenced are referred to by no frame at all.

    In H.265 the mark only speaks of frames of the same temporal layer, so it is trusted when there is one layer.
    """
    codec = stream.codec_context
    if codec.name == "hevc":
        extradata = codec.extradata or b""
        return len(extradata) > 21 and extradata[0] == 1 and (extradata[21] >> 3) & 7 == 1
    return codec.name in ("h264", "vp8", "mpeg4", "mpeg2video")


def length_prefix(codec: str, extradata: bytes) -> int:
    """Return bytes of the length in front of each NAL unit; 0 when they are separated by start codes."""
    place = {"h264": 4, "hevc": 21}[codec]
    return (extradata[place] & 3) + 1 if len(extradata) > place and extradata[0] == 1 else 0


def nal_heads(data: bytes | memoryview, prefix: int) -> Iterator[int]:
    """Yield where the NAL units of a packet begin; `prefix` as of `length_prefix`."""
    heads = _prefixed(data, prefix) if prefix else (match.end() for match in _START_CODE.finditer(data))
    return (head for head in heads if head < len(data))


def _has_nal(data: bytes, codec: str, *, prefix: int, types: tuple[int, ...]) -> bool:
    kinds = (data[head] & 31 if codec == "h264" else (data[head] >> 1) & 63 for head in nal_heads(data, prefix))
    return any(kind in types for kind in kinds)


def _prefixed(data: bytes | memoryview, prefix: int) -> Iterator[int]:
    """Yield where the NAL units of a packet with length prefixes begin."""
    at = 0
    while at + prefix < len(data):
        yield at + prefix
        at += prefix + int.from_bytes(data[at : at + prefix], "big")
