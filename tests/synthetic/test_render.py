from __future__ import annotations

import io
import itertools

import av
import numpy as np
import pytest
import torch

from arcvideo.layout import MediaLayout
from arcvideo.media.audio import mel_chunks
from arcvideo.media.clip import read_clip, to_media
from arcvideo.synthetic import draw, sound
from arcvideo.synthetic.encode import encode
from arcvideo.synthetic.script import (
    CLIP_KINDS,
    COLORS,
    KINDS,
    SCREEN_WORDS,
    SOUNDS,
    SPOKEN_WORDS,
    Script,
    Shape,
    Sound,
    Speech,
    Word,
    draw_script,
)

LAYOUT = MediaLayout(image_size=128, mel_bins=80, audio_positions=400)


def _script(*, seed: int = 1, duration: int = 2, kind: str = "full", **things) -> Script:
    parts = {"shapes": (), "words": (), "speech": (), "sounds": ()} | things
    return Script(key="k", kind=kind, duration=duration, seed=seed, **parts)


def _shape(**changes) -> Shape:
    fields = {"color": "red", "kind": "square", "start": 0, "end": 2, "x": 0.3, "y": 0.5, "motion": "still"}
    return Shape(**(fields | changes))


def _mel(script: Script) -> torch.Tensor:
    return mel_chunks(torch.from_numpy(sound.waveform(script)), mel_bins=80, chunk_samples=16_000 * script.duration)[0]


def test_equal_scripts_give_equal_bytes_and_other_seeds_other_ones():
    for kind in CLIP_KINDS:
        script = draw_script(split="train", index=0, seed=3, kind=kind)
        assert encode(script) == encode(script)
        assert encode(script) != encode(draw_script(split="train", index=0, seed=4, kind=kind))


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_each_kind_is_read_back_with_the_halves_it_has(kind):
    script = draw_script(split="train", index=5, seed=0, kind=kind)
    extension, data = encode(script)
    media = to_media(read_clip(data, name=f"a.{extension}", layout=LAYOUT), layout=LAYOUT)
    assert media.has_video == (kind != "speech")
    assert media.has_audio == (kind in ("full", "speech"))
    assert media.frame_count == media.seconds == script.duration
    assert extension in {"image": ("jpg",), "speech": ("m4a", "wav")}.get(kind, ("mp4",))


def test_video_is_h264_and_sound_is_aac():
    with av.open(io.BytesIO(encode(draw_script(split="train", index=0, seed=0, kind="full"))[1])) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.streams.video[0].average_rate == draw.FPS


def test_things_are_seen_in_their_seconds_only():
    script = _script(
        duration=6, shapes=(_shape(start=1, end=3),), words=(Word(text="GOAL", start=4, end=5),), kind="silent"
    )
    clip = read_clip(encode(script)[1], name="a.mp4", layout=LAYOUT)
    empty = clip.frames[0].int()
    changed = [(frame.int() - empty).abs()[:, 30:].amax() > 60 for frame in clip.frames]
    assert changed == [False, True, True, False, True, False]


def test_colours_survive_encoding_and_resizing():
    """The centre of each shape is nearest to its own colour."""
    for color, kind in itertools.product(COLORS, KINDS):
        shape = _shape(color=color, kind=kind)
        clip = read_clip(encode(_script(shapes=(shape,), kind="silent"))[1], name="a.mp4", layout=LAYOUT)
        row = round((38 + shape.y * (192 - 38)) / 192 * 128)
        pixel = clip.frames[1, :, row, round(shape.x * 128)].numpy().astype(int)
        distances = {name: np.abs(np.subtract(rgb, pixel)).sum() for name, rgb in draw.RGB.items()}
        assert min(distances, key=distances.get) == color


def test_shapes_and_text_keep_clear_of_the_stamp_and_of_the_edges():
    for x, y, motion in itertools.product((0.2, 0.8), (0.0, 1.0), ("left", "right")):
        for frame in draw.frames(_script(shapes=(_shape(color="white", x=x, y=y, motion=motion),))):
            bright = np.argwhere(frame.min(axis=2) > 150)
            assert bright[:, 0].min() >= 37  # the stamp's box ends at row 36 of 192
            assert len(bright) >= 30 * 30  # the smallest square, whole
    for text in SCREEN_WORDS:
        for seed in range(4):
            frame = draw.still(_script(seed=seed, words=(Word(text=text, start=0, end=2),)))
            columns = np.argwhere(frame.min(axis=2) > 200)[:, 1]
            assert 1 <= columns.min() < columns.max() <= draw.WIDTH - 2


def test_moving_shapes_move_the_way_they_say():
    def path(motion: str) -> list[float]:
        frames = draw.frames(_script(shapes=(_shape(color="white", x=0.5, motion=motion),)))
        return [float(np.argwhere(frame.min(axis=2) > 150)[:, 1].mean()) for frame in frames]

    left, still, right = path("left"), path("still"), path("right")
    travel = draw._TRAVEL * draw.WIDTH
    assert travel / 2 < left[0] - left[-1] < travel
    assert travel / 2 < right[-1] - right[0] < travel
    assert still[0] == still[-1]


def test_unchanged_pictures_are_drawn_once():
    frames = list(draw.frames(_script(shapes=(_shape(start=1, end=2),))))
    assert len(frames) == 2 * draw.FPS
    assert len({id(frame) for frame in frames}) == 2


def test_sound_lies_in_its_seconds_and_stays_in_range():
    script = _script(
        duration=6,
        speech=(Speech(text="mango", start=0.2, end=0.8),),
        sounds=(Sound(name="siren", start=3, end=5),),
    )
    wave = sound.waveform(script)
    assert wave.dtype == np.float32
    assert wave.shape == (6 * 16_000,)
    assert np.abs(wave).max() <= 1
    loud = [float(np.sqrt(np.mean(second**2))) > 0.02 for second in wave.reshape(6, -1)]
    assert loud == [True, False, False, True, True, False]


def test_encoded_sound_stays_where_it_was():
    script = draw_script(split="train", index=1, seed=0, kind="full")
    heard = read_clip(encode(script)[1], name="a.mp4", layout=LAYOUT).waveform.numpy()
    made = sound.waveform(script)
    size = min(heard.size, made.size)
    assert abs(heard.size - made.size) <= 2048
    product = np.fft.irfft(np.fft.rfft(heard[:size], 2 * size) * np.fft.rfft(made[:size], 2 * size).conj())
    assert int(product.argmax()) in range(-2, 3) or int(product.argmax()) - 2 * size in range(-2, 3)
    assert product.max() / (np.linalg.norm(heard) * np.linalg.norm(made)) > 0.9


@pytest.mark.parametrize(
    ("names", "make"),
    [
        (SPOKEN_WORDS, lambda name: {"speech": (Speech(text=name, start=0.2, end=0.8),)}),
        (SOUNDS, lambda name: {"sounds": (Sound(name=name, start=0, end=1),)}),
    ],
    ids=["words", "sounds"],
)
def test_sounds_are_told_apart_by_their_spectra(names, make):
    """Nearest class mean on coarse log-mels, other voices than the means were made from."""

    def features(name: str, seeds: range) -> torch.Tensor:
        mels = [_mel(_script(seed=seed, duration=1, **make(name))) for seed in seeds]
        return torch.stack([mel.reshape(80, 10, 10).mean(2).flatten() for mel in mels])

    means = torch.stack([features(name, range(12)).mean(0) for name in names])
    right = [(torch.cdist(features(name, range(50, 58)), means).argmin(1) == i) for i, name in enumerate(names)]
    assert torch.stack(right).float().mean() > 0.95
    assert min(float(row.float().mean()) for row in right) >= 0.75


def test_no_two_words_share_their_syllables():
    assert set(sound.SYLLABLES) == set(SPOKEN_WORDS)
    assert len(set(sound.SYLLABLES.values())) == len(SPOKEN_WORDS)


def test_unknown_vocabulary_is_refused_by_name():
    with pytest.raises(ValueError, match="banana"):
        sound.waveform(_script(speech=(Speech(text="banana", start=0.1, end=0.7),)))
    with pytest.raises(ValueError, match="thunder"):
        sound.waveform(_script(sounds=(Sound(name="thunder", start=0, end=1),)))
    with pytest.raises(ValueError, match="star"):
        list(draw.frames(_script(shapes=(_shape(kind="star"),))))
    with pytest.raises(ValueError, match="opera"):
        encode(_script(kind="opera"))
