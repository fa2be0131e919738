"""Files that people made, from the optional folder of test media."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from arcvideo.media.clip import read_clip, to_media
from arcvideo.media.decode import decode
from arcvideo.media.frames import plan_frames
from arcvideo.media.picture import Selection
from arcvideo.media.settings import MediaLimits


@pytest.mark.parametrize(("name", "frames"), [("u3519j52lb4", 17), ("x3555e2g3t8", 15), ("q35134y59x8", 30)])
def test_released_shorts_give_the_documented_frames_and_seconds(media_folder, layout_of, name, frames):
    layout = layout_of(image_size=64, mel_bins=128, audio_positions=1500)
    video = (media_folder / "shorts" / f"{name}.mp4").read_bytes()
    sound = (media_folder / "shorts" / f"{name}.mp3").read_bytes()
    clip = read_clip(video, name=name, layout=layout, sidecar_audio=sound)
    media = to_media(clip, layout=layout)
    assert (media.frame_count, media.seconds, media.mel.shape) == (frames, frames, (1, 128, 3000))
    own = read_clip(video, name=name, layout=layout).waveform[: clip.waveform.numel()].numpy()
    given = clip.waveform[: own.size].numpy()
    assert _likeness(own, given) > 0.9  # the mp3 was made from this sound


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The largest correlation over shifts of at most 0.1 s."""
    size = 2 * min(one.size, other.size)
    spectrum = np.fft.rfft(one, size) * np.fft.rfft(other, size).conj()
    product = np.fft.irfft(spectrum)
    return max(product[:1600].max(), product[-1600:].max()) / (np.linalg.norm(one) * np.linalg.norm(other))


def test_chosen_frames_equal_those_of_a_full_decode(media_folder):
    for name in ("shorts/x3555e2g3t8.mp4", "media/nasa_13013.mp4", "media/h265_video.mp4", "media/av1_video.mkv"):
        data = (media_folder / name).read_bytes()
        taken: list[int] = []

        def choose(facts, taken=taken):
            taken[:] = plan_frames(frame_count=facts.frame_count, fps=facts.fps, max_frames=5).indices
            return Selection(indices=tuple(taken))

        decoded = decode(data, name=name, choose=choose, limits=MediaLimits())
        with av.open(io.BytesIO(data)) as container:
            shown = list(container.decode(container.streams.best("video")))
            assert len(shown) == decoded.facts.frame_count
            for index, frame in zip(taken, decoded.frames, strict=True):
                assert np.array_equal(shown[index].to_ndarray(format="rgb24"), frame), (name, index)


def test_default_streams_are_taken_among_several(media_folder, layout):
    clip = read_clip((media_folder / "media/nasa_13013.mp4").read_bytes(), name="nasa", layout=layout)
    assert clip.duration == pytest.approx(13.013)  # stream 3; stream 0 would be 13.0
    assert clip.frames.shape[0] == 14
    assert clip.waveform.numel() == pytest.approx(13.056 * 16_000, abs=200)


def test_full_range_colour_is_converted_with_its_own_matrix(media_folder):
    data = (media_folder / "media/bt709_full_range.mp4").read_bytes()
    decoded = decode(data, name="709", choose=lambda facts: Selection(indices=(0,)), limits=MediaLimits())
    with av.open(io.BytesIO(data)) as container:
        planes = next(container.decode(video=0)).to_ndarray().astype(float)
    height = planes.shape[0] * 2 // 3
    luma = planes[:height]
    red, green, blue = (decoded.frames[0][..., channel].astype(float) for channel in range(3))
    assert np.abs(0.2126 * red + 0.7152 * green + 0.0722 * blue - luma).mean() < 2.0


@pytest.mark.parametrize(
    ("name", "seconds"), [("jfk.flac", 11), ("sine_mono_s16.wav", 4), ("nasa_13013.mp4.audio.mp3", 14)]
)
def test_sound_files_of_other_makers_are_read(media_folder, layout, name, seconds):
    clip = read_clip((media_folder / "media" / name).read_bytes(), name=name, layout=layout)
    assert (clip.frames, clip.frame_times.shape[0]) == (None, seconds)
