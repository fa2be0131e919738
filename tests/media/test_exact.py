"""Leaving out what is not needed must not change what is: chosen frames against those of a full decode."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from arcvideo.media.decode import decode
from arcvideo.media.picture import Selection
from arcvideo.media.settings import MediaLimits
from tests.media.files import CLOCK, Picture, moving, write

X264 = {"preset": "medium", "crf": "12"}
X265 = "log-level=none:pools=1:frame-threads=1"
AV1 = {"preset": "12", "svtav1-params": "keyint=12:lp=1"}

STREAMS = {
    "h264 with closed groups": ("libx264", "mp4", {**X264, "g": "12", "bf": "3"}),
    "h264 with open groups": ("libx264", "mp4", {**X264, "g": "12", "x264-params": "open-gop=1:b-adapt=0:bframes=4"}),
    "h264 with intra refresh": ("libx264", "mp4", {**X264, "g": "12", "x264-params": "intra-refresh=1"}),
    "h264 in a transport stream": ("libx264", "mpegts", {**X264, "g": "12"}),
    "h264 in quicktime": ("libx264", "mov", {**X264, "g": "250", "bf": "0"}),
    "h265 with closed groups": ("libx265", "mp4", {"preset": "fast", "g": "12", "x265-params": f"open-gop=0:{X265}"}),
    "h265 with open groups": ("libx265", "mov", {"preset": "fast", "g": "12", "x265-params": X265}),
    "h265 in layers": (
        "libx265",
        "matroska",
        {"preset": "fast", "g": "24", "x265-params": f"temporal-layers=3:{X265}"},
    ),
    "h265 in a transport stream": ("libx265", "mpegts", {"preset": "fast", "g": "12", "x265-params": X265}),
    "av1": ("libsvtav1", "mp4", AV1),
    "av1 in matroska": ("libsvtav1", "matroska", AV1),
    "vp9": ("libvpx-vp9", "webm", {"g": "12", "lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "8"}),
    "vp8": ("libvpx", "webm", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"}),
    "mpeg4": ("mpeg4", "avi", {"g": "12", "bf": "2", "b": "2M"}),
    "mpeg2": ("mpeg2video", "mpegts", {"g": "12", "bf": "2", "b": "2M"}),
    "mjpeg": ("mjpeg", "avi", {"q:v": "3"}),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_chosen_frames_equal_those_of_a_full_decode(kind):
    codec, container, options = STREAMS[kind]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    rate, clock = (4, CLOCK) if codec not in ("mpeg4", "mpeg2video", "mjpeg") else (25, Fraction(1, 25))
    picture = Picture(frames=moving(60), codec=codec, options=options, pix_fmt=pix_fmt, rate=rate, clock=clock)
    data = write(picture, container=container)
    whole = every_frame(data)
    assert len(whole) == 60
    for wanted in ((0,), (59,), (2, 27, 40), (25,), (13, 14, 37, 59), tuple(range(3, 60, 5))):
        taken = decode(data, name=kind, choose=lambda _, wanted=wanted: Selection(indices=wanted), limits=MediaLimits())
        assert taken.facts.frame_count == 60
        for index, frame in zip(wanted, taken.frames, strict=True):
            assert np.array_equal(whole[index], frame), (kind, wanted, index)


def test_groups_without_a_wanted_frame_are_not_decoded(monkeypatch):
    data = write(Picture(frames=moving(60), options={**X264, "g": "12"}), container="mp4")
    fed = packets_fed(monkeypatch, data, wanted=(30,))
    assert 0 < fed <= 12
    assert packets_fed(monkeypatch, data, wanted=(59,)) <= 13


def every_frame(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def packets_fed(monkeypatch, data: bytes, *, wanted: tuple[int, ...]) -> int:
    """How many packets the decoder is given."""
    from arcvideo.media import picture

    fed = []
    original = picture._decoded

    def counting(packet, **keywords):
        fed.append(packet)
        return original(packet, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(picture, "_decoded", counting)
        decode(data, name="a", choose=lambda _: Selection(indices=wanted), limits=MediaLimits())
    return len(fed)
