"""Packets that are not in an H.264 stream any more although others refer to their pictures, which decoders conceal.

Reference pictures are numbered (frame_num, ITU-T H.264 7.4.3), so that a number that is left out tells of one that is
gone; that an IDR picture is gone is not seen where the numbers go on behind it by chance. A stream whose headers cannot
be followed, or that may leave out numbers, is taken as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import av
from av.video.stream import VideoStream

from arcvideo.media.errors import MediaError
from arcvideo.media.restart import length_prefix, nal_heads
from arcvideo.media.streams import in_seconds

_SLICES, _IDR, _SPS, _PPS = (1, 2, 5), 5, 7, 8
_WITH_CHROMA = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
"""Profiles whose SPS speaks of chroma and scaling (7.3.2.1.1)."""
_SLICE_BYTES, _SET_BYTES = 32, 1024
"""That are read of a slice, whose header begins it, and of a parameter set."""


def check_references(packets: Sequence[av.Packet], stream: VideoStream, *, wanted: Collection[int], name: str) -> None:
    """Refuse frames that may lean on a picture that is not in the file.

    Args:
        packets: of the stream, in the order of decoding.
        stream: any; those that are not H.264 are not looked at.
        wanted: time stamps of the frames that are asked for.
        name: for messages.

    Raises:
        MediaError: `corrupt`: the first of them.
    """
    if stream.codec_context.name != "h264":
        return
    spoiled = sorted(time for time in _spoiled(packets, stream) if time in wanted)
    if spoiled:
        seconds = in_seconds(stream, spoiled[0])
        raise MediaError(
            "corrupt", f"{name}: packets are missing that {len(spoiled)} frames lean on, the first at {seconds:.2f} s"
        )


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    """What a sequence parameter set says of the numbers."""

    bits: int
    planes: bool
    """Whether a slice tells its colour plane before its number."""
    may_skip: bool


@dataclass(frozen=True, kw_only=True)
class _Picture:
    number: int
    idr: bool
    referred: bool
    sequence: _Sequence


@dataclass
class _Headers:
    """Reads the numbers; parameter sets may stand in front of the stream and in it."""

    prefix: int
    sequences: dict[int, _Sequence] = field(default_factory=dict)
    owners: dict[int, int] = field(default_factory=dict)
    """Picture parameter set -> its sequence."""

    def picture(self, data: memoryview) -> _Picture | None:
        """Return the first picture of a packet; None where it cannot be read."""
        for head in nal_heads(data, self.prefix):
            kind = data[head] & 31
            try:
                if kind in (_SPS, _PPS):
                    self.take(bytes(data[head : head + _SET_BYTES]))
                elif kind in _SLICES:
                    return self._slice(bytes(data[head : head + _SLICE_BYTES]))
            except (IndexError, KeyError, OverflowError):
                return None
        return None

    def take(self, unit: bytes) -> None:
        """Remember a parameter set."""
        bits = _Bits(unit)
        if unit[0] & 31 == _PPS:
            number = bits.exp()
            self.owners[number] = bits.exp()
        elif unit[0] & 31 == _SPS:
            number, sequence = _read_sequence(bits)
            self.sequences[number] = sequence

    def _slice(self, unit: bytes) -> _Picture:
        bits = _Bits(unit)
        bits.exp(), bits.exp()  # first macroblock, kind of slice
        sequence = self.sequences[self.owners[bits.exp()]]
        if sequence.planes:
            bits.take(2)
        return _Picture(
            number=bits.take(sequence.bits),
            idr=unit[0] & 31 == _IDR,
            referred=bool(unit[0] >> 5 & 3),
            sequence=sequence,
        )


def _spoiled(packets: Sequence[av.Packet], stream: VideoStream) -> Iterator[int]:
    """Yield the time stamps of frames that may lean on a picture that is gone.

    From a gap on that is every frame up to the next one at which decoding may begin; where that one is no IDR picture,
    those shown before it, too.
    """
    headers = _of(stream.codec_context.extradata or b"")
    last: int | None = None  # number of the reference picture before
    lost, before = False, None
    for packet in packets:
        if not packet.size:
            continue
        if packet.has_sidedata("new_extradata"):  # a joined file goes on with other parameter sets
            headers = _of(bytes(packet.get_sidedata("new_extradata")))
        picture, time = headers.picture(memoryview(packet)), packet.pts  # type: ignore[arg-type]
        if picture is None or time is None or picture.sequence.may_skip:
            return
        gap = last is not None and (picture.number - last) % (1 << picture.sequence.bits) > 1
        if picture.idr:
            lost, before = False, None
        elif packet.is_keyframe:
            lost, before = False, time if lost or gap else None
        elif gap:
            lost = True
        if lost or (before is not None and time < before):
            yield time
        last = picture.number if picture.referred else last


def _of(data: bytes) -> _Headers:
    """Return what the parameter sets of a container say."""
    headers = _Headers(length_prefix("h264", data))
    units = _listed(data) if data[:1] == b"\x01" else [data[head:] for head in nal_heads(memoryview(data), 0)]
    for unit in units:
        try:
            headers.take(unit[:_SET_BYTES])
        except (IndexError, OverflowError):
            continue
    return headers


def _listed(data: bytes) -> Iterator[bytes]:
    """Yield the parameter sets of an `avcC` box (ISO 14496-15, 5.3.3.1)."""
    at = 5
    for mask in (31, 255):
        count = data[at] & mask if at < len(data) else 0
        at += 1
        for _ in range(count):
            size = int.from_bytes(data[at : at + 2], "big")
            yield data[at + 2 : at + 2 + size]
            at += 2 + size


def _read_sequence(bits: _Bits) -> tuple[int, _Sequence]:
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    number, chroma, planes = bits.exp(), 1, False
    if profile in _WITH_CHROMA:
        chroma = bits.exp()
        planes = chroma == 3 and bool(bits.take(1))
        bits.exp(), bits.exp(), bits.take(1)  # depths of luma and chroma, lossless
        if bits.take(1):
            for place in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _pass_scaling(bits, count=16 if place < 6 else 64)
    length = bits.exp() + 4
    order = bits.exp()
    if order == 0:
        bits.exp()
    elif order == 1:
        bits.take(1), bits.exp(), bits.exp()
        for _ in range(min(bits.exp(), 255)):
            bits.exp()
    bits.exp()  # reference frames
    return number, _Sequence(bits=min(length, 16), planes=planes, may_skip=bool(bits.take(1)))


def _pass_scaling(bits: _Bits, *, count: int) -> None:
    last, then = 8, 8
    for _ in range(count):
        if then:
            code = bits.exp()
            then = (last + (-(code // 2) if code % 2 == 0 else code // 2 + 1)) % 256
        last = then or last


class _Bits:
    """The bits behind the first byte of a NAL unit, without the bytes that only keep start codes from appearing."""

    def __init__(self, unit: bytes) -> None:
        self._data = unit[1:].replace(b"\x00\x00\x03", b"\x00\x00")
        self._at = 0

    def take(self, count: int) -> int:
        """Return an unsigned number of so many bits.

        Raises:
            IndexError: there are not so many.
        """
        end = self._at + count
        if end > 8 * len(self._data):
            raise IndexError
        first, last = self._at // 8, (end + 7) // 8
        self._at = end
        return int.from_bytes(self._data[first:last], "big") >> (8 * last - end) & ((1 << count) - 1)

    def exp(self) -> int:
        """Return an unsigned Exp-Golomb number (9.1); a signed one, too, is passed over so.

        Raises:
            OverflowError: it has over 32 bits.
        """
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise OverflowError
        return (1 << zeros) - 1 + self.take(zeros)
