"""What RIFF files (WAV, AVI, WebP) say about their own size, and the frames that an AVI leaves out on purpose."""

from __future__ import annotations

from collections.abc import Iterator

from arcvideo.media.errors import MediaError

_NEAR = 1 << 16
"""Bytes around 2 GiB, and below 4 GiB, in which a size is a mark: programs that write into a pipe put the largest
number they know there, rounded to a page or a block, with or without the header."""
_HEAD = 8
"""Four letters and a size."""


def check_riff_size(data: bytes, *, name: str) -> None:
    """Complain when a RIFF file is shorter than it says, which demuxers forgive silently.

    An AVI beyond a gigabyte is several such files in a row, each of which is checked.

    Raises:
        MediaError: `truncated`.
    """
    at = 0
    while data[at : at + 4] == b"RIFF":
        size = _size(data, at)
        if _is_unknown(size):
            _check_wave(data, name=name)
            return
        _check(data, end=at + _HEAD + size, name=name)
        at += _HEAD + size + size % 2


def skipped_frames(data: bytes, *, stream: int) -> int:
    """Return how many frames of an AVI's stream are empty chunks: "show the last one again". Demuxers pass them over,
    the header counts them."""
    if data[:4] != b"RIFF" or data[8:12] != b"AVI ":
        return 0
    return sum(size == 0 and number == b"%02d" % stream for number, size in _stream_chunks(data))


def _stream_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield (two digits of the stream, size) of the chunks between the first and the last byte that make sense as
    such.
    """
    at = 0
    while at + _HEAD <= len(data):
        kind, size = data[at : at + 4], _size(data, at)
        if kind in (b"RIFF", b"LIST") and data[at + 8 : at + 12] in (b"AVI ", b"AVIX", b"movi", b"rec "):
            at += _HEAD + 4  # look inside
            continue
        if kind[:2].isdigit():
            yield kind[:2], size
        at += _HEAD + size + size % 2


def _check_wave(data: bytes, *, name: str) -> None:
    """A WAV of unknown size may still say how much sound it holds."""
    if data[8:12] != b"WAVE":
        return
    at = 12
    while at + _HEAD <= len(data):
        size = _size(data, at)
        if _is_unknown(size):
            return
        if data[at : at + 4] == b"data":
            _check(data, end=at + _HEAD + size, name=name)
            return
        at += _HEAD + size + size % 2


def _check(data: bytes, *, end: int, name: str) -> None:
    if len(data) + 1 < end:  # + 1: an omitted padding byte
        raise MediaError("truncated", f"{name}: {len(data)} of {end} bytes")


def _size(data: bytes, at: int) -> int:
    return int.from_bytes(data[at + 4 : at + 8], "little")


def _is_unknown(size: int) -> bool:
    """Return whether a size means that its writer did not know it: a pipe cannot be rewound to fill it in."""
    return size == 0 or abs(size - (1 << 31)) <= _NEAR or size >= (1 << 32) - _NEAR
