from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from arcvideo.media.clip import read_clip, to_media
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from tests.media.conftest import grey_frames, make_media, picture, tone, with_display_matrix


def _reason(data: bytes, layout, **keywords) -> str:
    with pytest.raises(MediaError) as caught:
        read_clip(data, name="clip.bin", layout=layout, **keywords)
    assert "clip.bin" in caught.value.detail
    return caught.value.reason


def _levels(frames: torch.Tensor) -> list[int]:
    """The frame number each picture tells by its grey level."""
    return [round((float(frame[:, 100:].float().mean()) - 16) / 4) for frame in frames]


def test_frames_come_in_presentation_order_from_the_middle_of_each_second(short_video, layout):
    clip = read_clip(short_video, name="a.mp4", layout=layout)
    assert clip.frames.shape == (10, 3, 128, 128)
    assert clip.frames.dtype == torch.uint8
    assert _levels(clip.frames) == [4 * second + 2 for second in range(10)]
    assert clip.frame_times.tolist() == [[second, second + 1] for second in range(10)]
    assert clip.duration == 10.0


def test_frame_limit_widens_the_intervals(short_video, layout_of):
    clip = read_clip(short_video, name="a.mp4", layout=layout_of(max_frames=4))
    assert _levels(clip.frames) == [5, 15, 25, 35]
    assert clip.frame_times[:, 1].tolist() == [2.5, 5.0, 7.5, 10.0]


def test_random_frames_follow_the_seed_and_change_the_key(short_video, layout):
    one, same, other = (
        read_clip(short_video, name="a.mp4", layout=layout, policy="random", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.frames, same.frames)
    assert one.key == same.key
    assert _levels(one.frames) != _levels(other.frames)
    assert one.key != other.key


def test_key_tells_bytes_layout_and_policy_apart_but_not_the_name(short_video, layout, layout_of):
    keys = [
        read_clip(short_video, name="a.mp4", layout=layout).key,
        read_clip(short_video, name="a.mp4", layout=layout_of(image_size=64)).key,
        read_clip(short_video, name="a.mp4", layout=layout, sidecar_audio=short_video).key,
        read_clip(make_media(grey_frames(8)), name="a.mp4", layout=layout).key,
    ]
    assert len(set(keys)) == 4
    assert read_clip(short_video, name="b.mp4", layout=layout, seed=7).key == keys[0]


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("matroska", "libx264", {"preset": "ultrafast"}),
        ("mov", "libx264", {"preset": "ultrafast"}),
        ("mp4", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1"}),
        ("matroska", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1"}),
        ("mp4", "libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}),
        ("webm", "libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}),
        ("matroska", "libvpx-vp9", {"cpu-used": "8"}),
        ("webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime", "b": "500k"}),
        ("webm", "libvpx-vp9", {"deadline": "realtime", "lag-in-frames": "16", "row-mt": "0"}),
        ("avi", "mpeg4", {"b": "2M", "bf": "2"}),
    ],
)
def test_other_containers_and_codecs_give_the_same_frames(container, codec, options, layout):
    data = make_media(grey_frames(24), container=container, codec=codec, options=options)
    clip = read_clip(data, name="clip", layout=layout)
    assert _levels(clip.frames) == [2, 6, 10, 14, 18, 22]


def test_sound_is_16_khz_mono_in_place_and_at_its_level(layout):
    stereo = tone(3, rate=48_000, channels=2)
    stereo[1] = 0
    data = make_media(grey_frames(12), sound=stereo, rate=48_000)
    wave = read_clip(data, name="a.mp4", layout=layout).waveform.numpy()
    assert abs(wave.size - 3 * 16_000) < 1200
    expected = 0.125 * np.sin(2 * np.pi * 440 * np.arange(wave.size) / 16_000)  # the mean of tone and silence
    assert np.abs(wave[4000:40_000] - expected[4000:40_000]).max() < 0.02


def test_sound_that_starts_late_is_padded_to_the_picture(layout):
    data = make_media(grey_frames(12), sound=tone(1), container="matroska", sound_first_pts=16_000)
    wave = read_clip(data, name="a.mkv", layout=layout).waveform
    assert wave[:15_000].abs().max() == 0
    assert wave[17_000:].abs().max() > 0.2


@pytest.mark.parametrize(
    ("container", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("ipod", "aac")]
)
def test_sound_files_have_times_but_no_frames(container, codec, layout):
    clip = read_clip(make_media(sound=tone(2.5), container=container, audio_codec=codec), name="a", layout=layout)
    assert clip.frames is None
    assert clip.frame_times.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert clip.duration == pytest.approx(2.5, abs=0.1)
    media = to_media(clip, layout=layout)
    assert (media.has_video, media.has_audio, media.frame_count, media.seconds) == (False, True, 3, 3)
    assert media.pixels is None
    assert media.mel.shape == (1, 80, 800)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp"])
def test_a_still_is_one_stamped_frame_of_one_second_without_sound(kind, layout):
    clip = read_clip(picture(kind), name="a", layout=layout)
    assert clip.frames.shape == (1, 3, 128, 128)
    assert (clip.duration, clip.waveform) == (1.0, None)
    assert clip.frames[0, :, 100, 64].tolist() == pytest.approx([200, 40, 40], abs=6)
    assert clip.frames[0, :, 22, 100].max() < 60  # the stamp's box
    media = to_media(clip, layout=layout)
    assert (media.frame_count, media.seconds, media.has_audio, media.mel) == (1, 1, False, None)


def test_video_without_sound_has_no_mel(layout):
    media = to_media(read_clip(make_media(grey_frames(10)), name="a.mp4", layout=layout), layout=layout)
    assert (media.frame_count, media.seconds, media.has_video, media.has_audio) == (3, 3, True, False)
    assert media.mel is None


def test_mel_covers_exactly_the_seconds_of_the_frames(short_video, layout):
    media = to_media(read_clip(short_video, name="a.mp4", layout=layout), layout=layout)
    assert (media.frame_count, media.seconds) == (10, 10)
    assert media.mel.shape == (2, 80, 800)


def test_sidecar_sound_replaces_the_own(short_video, layout):
    loud = make_media(sound=2 * tone(10), container="wav", audio_codec="pcm_s16le")
    clip = read_clip(short_video, name="a.mp4", layout=layout, sidecar_audio=loud)
    assert clip.waveform.abs().max() == pytest.approx(0.5, abs=0.01)
    assert clip.frames.shape[0] == 10


def test_turned_phone_video_is_read_upright(layout, media_with_rotation):
    clip = read_clip(media_with_rotation, name="a.mp4", layout=layout)
    left, right = clip.frames[0, 0, 64, 10], clip.frames[0, 0, 64, 118]
    top, bottom = clip.frames[0, 0, 50, 64], clip.frames[0, 0, 120, 64]
    assert abs(int(left) - int(right)) < 10  # stored left-dark right-bright, shown turned by a quarter
    assert abs(int(top) - int(bottom)) > 60


@pytest.mark.parametrize("matrix", [
    (1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0),
    (0, -1, -1, 0),
])  # fmt: skip
def test_turned_and_mirrored_pictures_are_read_as_they_are_shown(layout_of, matrix):
    """The pixel at (x, y) is shown at (a x + c y, b x + d y), moved so that the picture starts at the corner."""
    stored = np.full((64, 64, 3), 30, dtype=np.uint8)
    stored[32:, :32], stored[32:, 32:] = 90, 220  # top dark, bottom left grey, bottom right bright
    data = with_display_matrix(make_media([stored] * 4, options={"crf": "1"}), matrix=matrix)
    shown = read_clip(data, name="a.mp4", layout=layout_of(image_size=64)).frames[0, 0]
    a, b, c, d = matrix
    for x, y in ((16, 16), (16, 48), (48, 16), (48, 48)):
        column, row = a * (x - 32) + c * (y - 32) + 32, b * (x - 32) + d * (y - 32) + 32
        if row > 32:  # the stamp covers the upper half of so small a frame
            assert int(shown[row, column]) == pytest.approx(int(stored[y, x, 0]), abs=12)


def test_sound_that_ends_early_is_padded_to_the_picture(layout):
    clip = read_clip(make_media(grey_frames(24), sound=tone(2)), name="a.mp4", layout=layout)
    assert clip.waveform.numel() < 2.2 * 16_000
    media = to_media(clip, layout=layout)
    assert (media.frame_count, media.seconds) == (6, 6)
    assert media.mel[0, :, 320:].max() < media.mel[0, :, 50:150].max() - 0.5


def test_broken_files_are_named_with_their_reason(short_video, layout):
    wav = make_media(sound=tone(5), container="wav", audio_codec="pcm_s16le")
    assert _reason(b"", layout) == "no_media"
    assert _reason(b"no media at all" * 100, layout) == "unreadable"
    assert _reason(short_video[: len(short_video) // 2], layout) in ("unreadable", "truncated")
    assert _reason(wav[: len(wav) // 2], layout) == "truncated"
    assert _reason(picture()[:300], layout) == "truncated"
    assert _reason(picture("png")[:40], layout) in ("truncated", "unreadable")


def test_a_streamable_file_that_was_cut_off_is_truncated(layout, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 96, 64, 3), dtype=np.uint8)
    for container in ("mp4", "matroska"):
        data = make_media(list(noise), container=container, sound=tone(10))
        if container == "mp4":
            data = _index_first(data, tmp_path / "a.mp4")
        assert _reason(data[: int(0.7 * len(data))], layout) == "truncated", container


def _index_first(data: bytes, path: Path) -> bytes:
    """The same file with its index at the front, as files on the web have it (the muxer needs a real file for it)."""
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as out,
    ):
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return path.read_bytes()


def test_damage_inside_the_picture_is_not_passed_on(short_video, layout):
    """Zeroed picture data must give an error or, where the damage hit no wanted frame, the very same frames."""
    whole = read_clip(short_video, name="a.mp4", layout=layout)
    start = short_video.index(b"mdat") + 800
    damaged = short_video[:start] + bytes(400) + short_video[start + 400 :]
    try:
        clip = read_clip(damaged, name="a.mp4", layout=layout)
    except MediaError as error:
        found = error.reason
    else:
        found = "same" if torch.equal(clip.frames, whole.frames) else "altered"
    assert found in ("corrupt", "unreadable", "same")


def test_limits_are_enforced(short_video, layout):
    assert _reason(short_video, layout, limits=MediaLimits(max_bytes=1000)) == "too_large"
    assert _reason(short_video, layout, limits=MediaLimits(max_pixels=1000)) == "too_large"
    assert _reason(short_video, layout, limits=MediaLimits(max_seconds=5)) == "too_long"
    assert _reason(picture(), layout, limits=MediaLimits(max_pixels=1000)) == "too_large"


def test_a_playlist_cannot_name_other_files(tmp_path, layout):
    secret = tmp_path / "secret.wav"
    secret.write_bytes(make_media(sound=tone(1), container="wav", audio_codec="pcm_s16le"))
    lists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{secret}'\n",
    ]
    for text in lists:
        assert _reason(text.encode(), layout) in ("unreadable", "no_media")


def test_media_refuses_more_frames_than_the_model_takes(short_video, layout, layout_of):
    clip = read_clip(short_video, name="a.mp4", layout=layout)
    with pytest.raises(ValueError, match="max_frames"):
        to_media(clip, layout=layout_of(max_frames=4))


@pytest.mark.parametrize("mistake", [{"policy": "first"}, {"font": "no-such-file"}])
def test_a_mistake_of_the_user_does_not_look_like_a_broken_file(short_video, layout, mistake):
    with pytest.raises(ValueError, match=next(iter(mistake.values()))):
        read_clip(short_video, name="a.mp4", layout=layout, **mistake)
