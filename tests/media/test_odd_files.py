"""Good files that look damaged are read; the same files, damaged, are not."""

from __future__ import annotations

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from arcvideo.decoding.probe import probe
from arcvideo.media.decode import decode
from arcvideo.media.errors import MediaError
from arcvideo.media.picture import Selection, VideoFacts
from arcvideo.media.settings import MediaLimits
from tests.media.conftest import make_media, tone
from tests.media.files import Picture, box, moving, write


def every_frame(facts: VideoFacts) -> Selection:
    return Selection(indices=tuple(range(facts.frame_count)))


def frames_of(data: bytes) -> list[np.ndarray]:
    found = decode(data, name="clip.bin", choose=every_frame, limits=MediaLimits()).frames
    assert found is not None
    return found


def reason_of(data: bytes) -> str:
    with pytest.raises(MediaError) as caught:
        frames_of(data)
    return caught.value.reason


# AVI: the header counts frames that the file leaves out on purpose


def avi(codec: str) -> bytes:
    """40 frames' time at 10 a second, of which 8 to 19 show what was there before."""
    times = [number / 10 for number in range(40) if not 8 <= number < 20]
    stream = Picture(
        frames=moving(len(times)), codec=codec, times=times, rate=10, clock=Fraction(1, 10), options={},
        pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p",
    )  # fmt: skip
    return write(stream, container="avi")


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
def test_frames_that_an_avi_skips_are_not_missing(codec: str) -> None:
    data = avi(codec)
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].frames == 40
    facts = probe(data, name="a.avi")
    assert facts.duration == pytest.approx(4.0)
    assert len(frames_of(data)) == 28


def test_an_avi_that_lost_frames_or_its_end_is_still_truncated() -> None:
    data = avi("mjpeg")
    assert reason_of(data[: int(len(data) * 0.8)]) == "truncated"
    first = data.index(b"00dc", data.index(b"movi"))
    hole = first + 8 + int.from_bytes(data[first + 4 : first + 8], "little")
    holed = bytearray(data)
    holed[hole : hole + 3000] = bytes(3000)
    assert reason_of(bytes(holed)) in ("truncated", "corrupt")


# WAV from a pipe: marks for a size that was not known


def wav(*, riff: int | None = None, held: int | None = None) -> bytes:
    """A second of sound at 8 kHz whose header states other sizes."""
    samples = (np.sin(np.arange(8000) * 0.3) * 9000).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    size = 36 + len(samples) if riff is None else riff
    held = len(samples) if held is None else held
    return b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + struct.pack("<I", 16) + form + (
        b"data" + struct.pack("<I", held) + samples
    )  # fmt: skip


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("count", [2, 9, 16, 24])
def test_channels_are_averaged_however_many_there_are(count: int, rate: int) -> None:
    tones = np.stack([np.sin(np.arange(rate) * (0.02 + 0.001 * channel)) for channel in range(count)])
    samples = (tones * 9000).astype("<i2").T.tobytes()
    form = struct.pack("<HHIIHH", 1, count, rate, 2 * count * rate, 2 * count, 16)
    data = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(samples)) + samples
    sound = decode(
        b"RIFF" + struct.pack("<I", len(data)) + data, name="x.wav", choose=every_frame, limits=MediaLimits()
    )
    assert sound.waveform is not None
    expected = tones.mean(axis=0)[:: rate // 16_000] * 9000 / 32768
    inside = slice(200, -200)  # a resampler's filter reaches beyond both ends
    assert np.abs(sound.waveform[inside] - expected[inside]).max() < 1e-3


MARKS = [0, 0x7FFFF024, 0x7FFFFFFF, 0x80000000, 0x80000024, 0xFFFFFFF7, 0xFFFFFFFF]
"""What SoX, arecord, Asterisk, FFmpeg and others write into a pipe."""


@pytest.mark.parametrize("mark", MARKS)
def test_a_wav_of_unknown_size_is_whole(mark: int) -> None:
    held = mark - 36 if mark > 36 else 0
    assert probe(wav(riff=mark, held=held), name="a.wav").sound_samples == 16_000


@pytest.mark.parametrize(("riff", "held"), [(None, None), (0xFFFFFFFF, 16_000), (0, 16_000), (0x10000000, 0x0FFFFFDC)])
def test_a_wav_that_states_more_than_it_has_is_truncated(riff: int | None, held: int | None) -> None:
    assert reason_of(wav(riff=riff, held=held)[:9000]) == "truncated"


def aiff(count: int) -> bytes:
    """A second of sound at 8 kHz whose header counts other samples."""
    samples = (np.sin(np.arange(8000) * 0.3) * 9000).astype(">i2").tobytes()
    rate = struct.pack(">HQ", 16383 + 12, 8000 << (63 - 12))  # 80 bits of a float
    common = b"COMM" + struct.pack(">IhIh", 18, 1, count, 16) + rate
    held = b"SSND" + struct.pack(">III", 8 + 2 * count, 0, 0)
    return b"FORM" + struct.pack(">I", 4 + len(common) + len(held) + 2 * count) + b"AIFF" + common + held + samples


@pytest.mark.parametrize("count", [8000, 0x7F000000 // 2])
def test_an_aiff_that_was_written_into_a_pipe_is_whole(count: int) -> None:
    assert probe(aiff(count), name="a.aiff").sound_samples == 16_000


@pytest.mark.parametrize(("container", "codec"), [("aiff", "pcm_s16be"), ("au", "pcm_s16be"), ("wav", "pcm_s24le")])
def test_sound_that_lost_its_end_is_truncated(container: str, codec: str) -> None:
    data = make_media(sound=tone(1.0, rate=48_000), rate=48_000, container=container, audio_codec=codec)
    assert reason_of(data[: len(data) * 3 // 4]) == "truncated"


# pieces cut between open groups of pictures


def stream_of(codec: str, params: str) -> tuple[bytes, list[np.ndarray]]:
    name = "x264-params" if codec == "libx264" else "x265-params"
    options = {"preset": "veryfast", name: params}
    data = write(Picture(frames=moving(100, size=(96, 64)), codec=codec, options=options, rate=25), container="mp4")
    return data, frames_of(data)


def piece(data: bytes, *, container: str, key: int, end: int | None = None) -> bytes:
    """What `ffmpeg -c copy` makes of a file from its key-th key frame to another: nothing is encoded again."""
    target = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(target, "w", format=container, options={"avoid_negative_ts": "disabled"}) as out,
    ):
        stream = source.streams.video[0]
        made = out.add_stream_from_template(stream)
        keys, start = -1, None
        for packet in source.demux(stream):
            keys += packet.is_keyframe and packet.size > 0
            if not packet.size or keys < key or (end is not None and keys >= end):
                continue
            start = packet.pts if start is None else start
            packet.pts, packet.dts = packet.pts - start, packet.dts - start
            packet.stream = made
            out.mux(packet)
    return target.getvalue()


@pytest.fixture(scope="module")
def open_groups() -> tuple[bytes, list[np.ndarray]]:
    return stream_of("libx264", "open-gop=1:b-pyramid=normal:keyint=25:min-keyint=25:bframes=3:ref=4:scenecut=0")


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("key", [1, 2])
def test_a_piece_between_open_groups_gives_frames_of_its_source(
    open_groups: tuple[bytes, list[np.ndarray]], container: str, key: int
) -> None:
    whole, frames = open_groups
    found = frames_of(piece(whole, container=container, key=key, end=key + 1))
    assert 20 <= len(found) <= 25
    known = {frame.tobytes() for frame in frames}
    assert all(frame.tobytes() in known for frame in found)


def test_damage_in_such_a_piece_is_found(open_groups: tuple[bytes, list[np.ndarray]]) -> None:
    data = piece(open_groups[0], container="mp4", key=1)
    start, end = box(data, b"mdat")
    middle, long = (start + end) // 2, (end - start) // 4
    damaged = bytearray(data)
    damaged[middle : middle + long] = bytes(long)  # whole pictures: a few zeros inside of one can decode to something
    assert reason_of(bytes(damaged)) == "corrupt"


def test_leading_pictures_without_a_time_are_left_out() -> None:
    params = "log-level=none:pools=1:frame-threads=1:open-gop=1:keyint=27:min-keyint=27:bframes=3:b-adapt=0:scenecut=0"
    whole, frames = stream_of("libx265", params)
    data = piece(whole, container="matroska", key=1)
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
    assert any(packet.pts is None and packet.dts is None for packet in packets)
    found = frames_of(data)
    assert all(any(np.array_equal(frame, other) for other in frames[27:]) for frame in found)
    assert len(found) == 73


def test_a_raw_stream_has_no_times_at_all() -> None:
    data = write(Picture(frames=moving(10)), container="h264")
    with pytest.raises(MediaError, match="remux it"):
        frames_of(data)


# levels and opacity of stills and of videos


def still(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **how)
    return target.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(kind: str) -> None:
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    (frame,) = frames_of(still(Image.fromarray(levels), kind))
    assert np.array_equal(frame, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_levels_of_unknown_range_are_refused() -> None:
    assert reason_of(still(Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)), "TIFF")) == "unreadable"


def drawing(mode: str) -> Image.Image:
    """A black line on nothing; what is hidden is green."""
    pixels = np.zeros((32, 32, 4), dtype=np.uint8)
    pixels[..., 1] = 255
    pixels[10:12] = (0, 0, 0, 255)
    pixels[20:22] = (0, 0, 0, 128)
    return Image.fromarray(pixels, "RGBA").convert(mode)


LOSSLESS = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("RGBA", "AVIF")]
)
def test_transparent_pictures_stand_in_front_of_white(mode: str, kind: str) -> None:
    (frame,) = frames_of(still(drawing(mode), kind, **LOSSLESS.get(kind, {})))
    assert (frame[0] == 255).all()
    assert (frame[10] == 0).all()
    assert frame[20] == pytest.approx(127, abs=1)


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.fromarray(np.repeat([[0], [1]], 8, axis=1).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    (frame,) = frames_of(still(image, transparency=0))
    assert frame[0, 0].tolist() == [255, 255, 255]
    assert frame[1, 0].tolist() == [200, 100, 50]


def test_a_transparent_video_stands_in_front_of_white() -> None:
    target = io.BytesIO()
    with av.open(target, "w", format="mov") as out:
        stream = out.add_stream("png", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "rgba"
        for _ in range(4):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(drawing("RGBA")), format="rgba")))
        out.mux(stream.encode())
    frame = frames_of(target.getvalue())[0]
    assert (frame[0] == 255).all()
    assert (frame[10] == 0).all()


# types


@pytest.mark.parametrize(
    ("container", "codec", "pix_fmt"),
    [
        ("gif", "gif", "rgb8"),
        ("mpeg", "mpeg1video", "yuv420p"),
        ("mpegts", "libx264", "yuv420p"),
        ("asf", "wmv2", "yuv420p"),
        ("flv", "flv", "yuv420p"),
        ("3gp", "mpeg4", "yuv420p"),
        ("nut", "mpeg4", "yuv420p"),
    ],
)
def test_types_that_can_be_stored_are_read(container: str, codec: str, pix_fmt: str) -> None:
    stream = Picture(frames=moving(50), codec=codec, pix_fmt=pix_fmt, rate=25, options={}, clock=Fraction(1, 25))
    assert probe(write(stream, container=container), name="a").duration == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("aiff", "pcm_s16be"), ("au", "pcm_s16be"), ("caf", "pcm_s16le"), ("w64", "pcm_s16le"),
     ("ac3", "ac3"), ("mp2", "mp2"), ("matroska", "flac"), ("ogg", "libopus"), ("adts", "aac")],
)  # fmt: skip
def test_types_of_sound_that_can_be_stored_are_read(container: str, codec: str) -> None:
    rate = 48_000
    data = make_media(sound=tone(2.0, rate=rate), rate=rate, container=container, audio_codec=codec)
    assert probe(data, name="a").sound_samples == pytest.approx(32_000, abs=1700)


# pictures that move, and files that lost their end


def animation(kind: str, *, milliseconds: list[int]) -> tuple[bytes, list[np.ndarray]]:
    pictures = [np.random.default_rng(number).integers(0, 256, (24, 40, 3), dtype=np.uint8)
                for number in range(len(milliseconds))]  # fmt: skip
    first, *more = map(Image.fromarray, pictures)
    how = {"lossless": True} if kind == "WEBP" else {}
    return still(first, kind, save_all=True, append_images=more, duration=milliseconds, **how), pictures


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_a_picture_that_moves_is_a_video_with_the_times_it_states(kind: str) -> None:
    milliseconds = [400, 100, 1500, 250, 750]
    data, pictures = animation(kind, milliseconds=milliseconds)
    seen: list[VideoFacts] = []

    def choose(facts: VideoFacts) -> Selection:
        seen.append(facts)
        return Selection(indices=tuple(range(facts.frame_count)))

    frames = decode(data, name="a.bin", choose=choose, limits=MediaLimits()).frames
    (facts,) = seen
    assert facts.times is not None
    assert np.allclose(facts.times, np.cumsum([0, *milliseconds[:-1]]) / 1000)
    assert facts.duration == pytest.approx(3.0, abs=0.3 if kind == "PNG" else 1e-6)
    assert frames is not None
    assert all(np.array_equal(*pair) for pair in zip(frames, pictures, strict=True))


def test_a_moving_picture_in_front_of_nothing_is_in_front_of_white() -> None:
    images = [drawing("RGBA"), drawing("RGBA").rotate(90)]
    data = still(images[0], "WEBP", save_all=True, append_images=images[1:], duration=100, lossless=True)
    for frame, image in zip(frames_of(data), images, strict=True):
        opacity = np.asarray(image)[..., 3:]
        assert (frame[np.broadcast_to(opacity == 0, frame.shape)] == 255).all()


def test_a_broken_animation_is_refused_with_a_reason() -> None:
    data, _ = animation("WEBP", milliseconds=[100, 100, 100])
    assert reason_of(data[: len(data) // 2]) in ("truncated", "unreadable")
    assert reason_of(data[:40]) in ("truncated", "unreadable")


def test_a_file_that_lost_its_table_of_frames_is_truncated() -> None:
    data = write(Picture(frames=moving(30)), container="mp4")
    assert reason_of(data[: len(data) * 2 // 3]) == "truncated"
