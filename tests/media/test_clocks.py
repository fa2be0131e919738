"""Which frame and which sample belongs to which second, when files keep time in all the ways that files do."""

from __future__ import annotations

import numpy as np
import pytest

from arcvideo.media.clip import read_clip
from arcvideo.media.errors import MediaError
from tests.media.conftest import grey_frames, tone
from tests.media.files import Picture, Sound, box, with_edit, write

RATE = 16_000


def levels(data: bytes, layout, **keywords) -> list[int]:
    """The number that each chosen frame tells by its grey level."""
    frames = read_clip(data, name="clip", layout=layout, **keywords).frames
    return [round((float(frame[:, 100:].float().mean()) - 16) / 4) for frame in frames]


def heard(data: bytes, layout) -> np.ndarray:
    return read_clip(data, name="clip", layout=layout).waveform.numpy()


def loud_from(wave: np.ndarray) -> float:
    """Seconds at which the sound begins."""
    return int(np.argmax(np.abs(wave) > 0.1)) / RATE


@pytest.mark.parametrize("container", ["matroska", "mp4", "webm"])
def test_variable_rate_takes_the_frame_that_is_shown_in_each_second(container, layout):
    # ten frames in the first second, one that stands for three seconds, then four a second
    times = [n / 10 for n in range(10)] + [1.0] + [4.0 + n / 4 for n in range(8)]
    codec, options = ("libvpx-vp9", {"cpu-used": "8"}) if container == "webm" else ("libx264", {"crf": "10"})
    picture = Picture(frames=grey_frames(19), times=times, codec=codec, options=options)
    data = write(picture, container=container)
    clip = read_clip(data, name="clip", layout=layout)
    assert clip.duration == pytest.approx(6.0, abs=0.3)
    assert levels(data, layout)[:6] == [5, 10, 10, 10, 13, 17]
    drawn = levels(data, layout, policy="random", seed=3)
    assert drawn[0] in range(10)
    assert drawn[1:4] == [10, 10, 10]


def test_constant_rate_keeps_the_rule_of_the_released_code(layout):
    times = [round(n / 29.97, 3) for n in range(90)]  # matroska stores whole milliseconds
    data = write(Picture(frames=[frame for frame in grey_frames(45) for _ in (0, 1)], times=times, rate=30))
    assert levels(data, layout)[:3] == [14 // 2, 44 // 2, 74 // 2]


@pytest.mark.parametrize("start", [0.0, 1.7, 3600.0])
@pytest.mark.parametrize("container", ["matroska", "mpegts"])
def test_clock_that_does_not_start_at_zero_changes_nothing(container, start, layout):
    times = [start + n / 4 for n in range(12)]
    sound = np.concatenate([np.zeros((1, RATE), np.float32), tone(2)], axis=1)
    data = write(Picture(frames=grey_frames(12), times=times), Sound(runs=[(start, sound)]), container=container)
    clip = read_clip(data, name="clip", layout=layout)
    assert clip.frame_times.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert levels(data, layout) == [2, 6, 10]
    assert loud_from(clip.waveform.numpy()) == pytest.approx(1.0, abs=0.05)


def test_sound_that_starts_early_is_cut_to_the_picture(layout):
    sound = np.concatenate([np.zeros((1, 2 * RATE), np.float32), tone(2)], axis=1)
    data = write(Picture(frames=grey_frames(12), times=[1 + n / 4 for n in range(12)]), Sound(runs=[(0.0, sound)]))
    wave = heard(data, layout)
    assert loud_from(wave) == pytest.approx(1.0, abs=0.05)
    assert wave.size / RATE == pytest.approx(3.0, abs=0.1)


def test_sound_that_ends_before_the_picture_starts_is_absent(layout):
    picture = Picture(frames=grey_frames(8), times=[5 + n / 4 for n in range(8)])
    assert read_clip(write(picture, Sound(runs=[(0.0, tone(1))])), name="clip", layout=layout).waveform is None


def test_gap_in_the_sound_is_silence(layout):
    data = write(Picture(frames=grey_frames(24)), Sound(runs=[(0.0, tone(1)), (4.0, tone(1))], codec="pcm_s16le"))
    wave = heard(data, layout)
    assert np.abs(wave[int(1.1 * RATE) : int(3.9 * RATE)]).max() == 0
    assert 1.0 + loud_from(wave[RATE + 400 :]) == pytest.approx(4.0, abs=0.05)
    assert wave.size / RATE == pytest.approx(5.0, abs=0.05)


def test_sound_at_an_absurd_time_is_refused_instead_of_padded(layout):
    data = write(Picture(frames=grey_frames(8)), Sound(runs=[(0.0, tone(1)), (500_000.0, tone(1))], codec="pcm_s16le"))
    with pytest.raises(MediaError, match="too_long"):
        read_clip(data, name="clip", layout=layout)


def mp4(sound: np.ndarray | None = None) -> bytes:
    """Three seconds, 4 frames a second, no frames out of order, so that an edit list is ours alone."""
    streams = [Picture(frames=grey_frames(12), options={"crf": "10", "bf": "0"})]
    return write(*streams, *([Sound(runs=[(0.0, sound)])] if sound is not None else []), container="mp4")


def media_clock(data: bytes) -> int:
    """Ticks a second of the first track."""
    start, _ = box(data, b"mdhd")
    return int.from_bytes(data[start + 12 : start + 16], "big")


def test_edit_list_trims_the_start_and_the_end(layout):
    data = mp4()
    clock = media_clock(data)
    assert levels(data, layout) == [2, 6, 10]
    assert levels(with_edit(data, entries=[(2000, clock)]), layout) == [6, 10]
    assert levels(with_edit(data, entries=[(2000, 0)]), layout) == [2, 6]
    assert levels(with_edit(data, entries=[(1000, clock)]), layout) == [6]


def test_edit_list_that_delays_the_picture_delays_no_stamp(layout):
    sound = np.concatenate([np.zeros((1, 2 * RATE), np.float32), tone(2)], axis=1)
    delayed = with_edit(mp4(sound), entries=[(1000, -1), (3000, 0)])
    clip = read_clip(delayed, name="clip", layout=layout)
    assert levels(delayed, layout) == [2, 6, 10]
    assert loud_from(clip.waveform.numpy()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("layout_name", ["mono", "stereo", "5.1"])
@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_any_rate_and_layout_becomes_the_mean_of_its_channels(rate, layout_name, layout):
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout_name]
    wave = tone(1, rate=rate, channels=channels)
    wave[1:] = 0
    sound = Sound(runs=[(0.0, wave)], rate=rate, layout=layout_name, codec="flac")
    clip = read_clip(write(sound), name="clip", layout=layout)
    assert clip.waveform.numel() == pytest.approx(RATE, abs=64)
    expected = 0.25 / channels * np.sin(2 * np.pi * 440 * np.arange(clip.waveform.numel()) / RATE)
    assert np.abs(clip.waveform.numpy() - expected)[500:-500].max() < 0.01


@pytest.mark.parametrize("codec", ["aac", "libopus", "libmp3lame", "ac3", "flac", "pcm_s16le"])
def test_any_sound_codec_keeps_its_level_and_place(codec, layout):
    rate = 48_000
    wave = np.concatenate([np.zeros((2, rate), np.float32), tone(2, rate=rate, channels=2)], axis=1)
    data = write(Picture(frames=grey_frames(12)), Sound(runs=[(0.0, wave)], codec=codec, rate=rate, layout="stereo"))
    sound = heard(data, layout)
    assert loud_from(sound) == pytest.approx(1.0, abs=0.06)
    assert np.sqrt(np.mean(sound[RATE + 4000 : 2 * RATE] ** 2)) == pytest.approx(0.25 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_streams_the_default_one_is_taken(default, layout):
    dark, bright = grey_frames(8), [frame + 100 for frame in grey_frames(8)]
    pictures = [Picture(frames=frames, default=number == default) for number, frames in enumerate((dark, bright))]
    quiet, loud = 0.2 * tone(2), tone(2)
    sounds = [
        Sound(runs=[(0.0, wave)], codec="flac", default=number == default) for number, wave in enumerate((quiet, loud))
    ]
    data = write(*pictures, *sounds)
    assert (levels(data, layout)[0] > 20) == (default == 1)
    assert (np.abs(heard(data, layout)).max() > 0.1) == (default == 1)
