"""A packet that is gone from an H.264 stream: whoever leans on its picture is refused, everybody else is as it was."""

from __future__ import annotations

import io
import random
from collections.abc import Collection
from contextlib import suppress

import av
import numpy as np
import pytest

from arcvideo.media.decode import decode
from arcvideo.media.errors import MediaError
from arcvideo.media.losses import check_references
from arcvideo.media.picture import Selection
from arcvideo.media.settings import MediaLimits
from tests.media.files import Picture, moving, write

STREAMS = {
    "closed groups": "keyint=12:bframes=3",
    "pyramids": "keyint=25:bframes=3:b-pyramid=normal:ref=4:scenecut=0",
    "open groups": "open-gop=1:b-pyramid=normal:keyint=25:min-keyint=25:bframes=3:ref=4:scenecut=0",
    "no B": "keyint=250:bframes=0:ref=16",
    "intra refresh": "keyint=12:intra-refresh=1",
    "interlaced": "tff=1:keyint=20:bframes=2",
    "slices": "slices=4:keyint=20:bframes=3",
}
COUNT = 48


def made(kind: str, *, container: str) -> bytes:
    options = {"preset": "medium", "crf": "12", "x264-params": STREAMS[kind]}
    return write(Picture(frames=moving(COUNT), options=options, rate=25), container=container)


def without(data: bytes, *, gone: Collection[int], container: str) -> bytes:
    """What a recorder writes that lost packets on the way."""
    target = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(target, "w", format=container) as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in source.demux(stream) if packet.size):
            if number not in gone:
                packet.stream = copy
                out.mux(packet)
    return target.getvalue()


def shown(data: bytes) -> list[np.ndarray]:
    """All frames of a file, as a sample gets them."""
    taken = decode(
        data,
        name="x.mkv",
        choose=lambda facts: Selection(indices=tuple(range(facts.frame_count))),
        limits=MediaLimits(),
    )
    assert taken.frames is not None
    return taken.frames


def reason_of(data: bytes) -> str | None:
    """Why a file is refused."""
    try:
        shown(data)
    except MediaError as error:
        return error.reason
    return None


@pytest.mark.parametrize("container", ["matroska", "mpegts"])
@pytest.mark.parametrize("kind", STREAMS)
def test_no_frame_that_leans_on_a_lost_picture_is_taken_and_none_of_a_whole_file_refused(
    kind: str, container: str
) -> None:
    data = made(kind, container=container)
    whole = shown(data)
    known = {frame.tobytes() for frame in whole}
    assert len(whole) == COUNT
    refused = taken = 0
    for number in random.Random(kind).sample(range(1, COUNT), 8):
        cut = without(data, gone={number}, container=container)
        if reason_of(cut) == "corrupt":
            refused += 1
            continue
        found = shown(cut)
        assert len(found) == COUNT - 1
        assert {frame.tobytes() for frame in found} <= known
        taken += 1
    assert refused
    assert taken or kind in ("no B", "intra refresh")  # nobody leans on most frames between others


def test_only_what_leans_on_the_loss_is_refused() -> None:
    data = made("open groups", container="matroska")
    cut = without(data, gone={1}, container="matroska")
    with av.open(io.BytesIO(cut)) as container:
        stream = container.streams.video[0]
        packets = list(container.demux(stream))
        times = sorted(packet.pts for packet in packets if packet.pts is not None)
        second = [packet.pts for packet in packets if packet.size and packet.is_keyframe][1]
        assert second is not None
        check_references(packets, stream, wanted={time for time in times if time >= second}, name="x")
        check_references(packets, stream, wanted={times[0]}, name="x")
        with pytest.raises(MediaError, match=r"x: packets are missing that \d+ frames lean on, the first at 0\.\d\d s"):
            check_references(packets, stream, wanted=set(times), name="x")


def joined(first: bytes, second: bytes, *, after: int) -> bytes:
    """Two FLV files behind each other, the second `after` milliseconds later."""
    out, at = bytearray(first), 13
    while at + 11 <= len(second):
        size = 11 + int.from_bytes(second[at + 1 : at + 4], "big") + 4
        tag = bytearray(second[at : at + size])
        time = after + int.from_bytes(bytes([tag[7], *tag[4:7]]), "big")
        tag[4:8] = [time >> 16 & 255, time >> 8 & 255, time & 255, time >> 24]
        if tag[0] == 9:  # a picture
            out += tag
        at += size
    return bytes(out)


def test_a_joined_file_is_read_with_the_parameter_sets_of_each_part() -> None:
    parts = [made(kind, container="flv") for kind in ("no B", "closed groups")]
    known = {frame.tobytes() for part in parts for frame in shown(part)}
    data = joined(*parts, after=1000 * (COUNT + 10) // 25)
    with av.open(io.BytesIO(data)) as container:
        assert any(packet.has_sidedata("new_extradata") for packet in container.demux(video=0))
    found = shown(data)
    assert len(found) == 2 * COUNT
    assert {frame.tobytes() for frame in found} <= known


def test_headers_that_cannot_be_followed_are_no_loss() -> None:
    data = made("pyramids", container="matroska")
    chance = random.Random(0)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        wanted = {packet.pts for packet in packets if packet.pts is not None}
        for _ in range(300):
            odd = []
            for packet in packets[:12]:
                content = bytearray(bytes(packet)[:64])
                for _ in range(chance.randrange(4)):
                    content[chance.randrange(len(content))] = chance.randrange(256)
                changed = av.Packet(bytes(content[: chance.randrange(1, 65)]))
                changed.pts, changed.is_keyframe = packet.pts, packet.is_keyframe
                odd.append(changed)
            with suppress(MediaError):  # a number may have been hit
                check_references(odd, stream, wanted=wanted, name="x")
