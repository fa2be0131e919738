import os
from dataclasses import replace

import pytest
import torch

from arcvideo.model.arc_hunyuan.parts import audio_for_frames, rows_per_frame
from arcvideo.model.towers.features import FeatureStore, feature_key, tower_digest
from arcvideo.model.towers.media import normalize_pixels
from tests.model.small import SETTINGS, Row, clip, prefix, small_model, text


@pytest.fixture
def model():
    return small_model()


def freeze(model):
    for tower in (model.vision_model.vit, model.speech_encoder):
        tower.requires_grad_(False)
    return model


def row_with(frames: int) -> dict:
    row = Row()
    row.add(torch.cat([prefix(frames=frames), text(4, seed=0)]))
    return row.inputs()


def counted(model, monkeypatch) -> dict[str, int]:
    calls = {"merger": 0, "projector": 0}
    model.vision_model.perceive.register_forward_hook(lambda *_: calls.update(merger=calls["merger"] + 1))
    model.mlp2.register_forward_hook(lambda *_: calls.update(projector=calls["projector"] + 1))
    return calls


@pytest.mark.parametrize("clips", [0, 1, 3])
def test_projectors_run_exactly_once_with_or_without_media(model, monkeypatch, clips):
    calls = counted(freeze(model), monkeypatch)
    row = Row()
    row.add(text(5, seed=1))
    for _ in range(clips):
        row.add(prefix(frames=2))
    model(**row.inputs(), media=[clip(seed=i) for i in range(clips)]).logits.sum().backward()
    assert calls == {"merger": 1, "projector": 1}
    for part in (model.vision_model.perceive, model.mlp2):
        for name, parameter in part.named_parameters():
            # Still images only: the separator has no use in videos.
            assert (parameter.grad is not None) == (name != "image_sep"), name


def test_text_rows_leave_zero_gradients_in_the_projectors(model):
    row = Row()
    row.add(text(5, seed=1))
    model(**row.inputs()).logits.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.mlp2.parameters())
    assert all(not p.grad.any() for p in model.vision_model.perceive.parameters() if p.grad is not None)


def test_frozen_towers_get_no_gradients_and_projectors_do(model):
    model(**row_with(2), media=[clip()]).logits.square().sum().backward()
    assert all(p.grad is not None for p in model.speech_encoder.parameters())
    model.zero_grad()
    freeze(model)
    model(**row_with(2), media=[clip()]).logits.square().sum().backward()
    assert all(p.grad is None for p in model.speech_encoder.parameters())
    assert model.vision_model.perceive.proj[0].weight.grad.abs().sum() > 0
    assert model.mlp2[1].weight.grad.abs().sum() > 0


def test_pixels_and_sound_both_reach_the_logits(model):
    media, other = clip(seed=1), clip(seed=2)
    base = model(**row_with(2), media=[media]).logits
    assert not torch.allclose(base, model(**row_with(2), media=[replace(media, pixels=other.pixels)]).logits)
    assert not torch.allclose(base, model(**row_with(2), media=[replace(media, mel=other.mel)]).logits)


def test_a_missing_picture_is_zero_pixel_values(model):
    media = clip()
    blank = replace(media, has_video=False, pixels=None)
    patches = model.encode_vision(torch.zeros(2, 3, 128, 128))
    given = replace(media, patches=patches, pixels=None)
    torch.testing.assert_close(model.embed_media([blank]), model.embed_media([given]))


def test_tower_outputs_given_equal_those_computed(model):
    media = clip()
    patches = model.encode_vision(normalize_pixels(media.pixels, dtype=torch.float32))
    given = replace(media, pixels=None, mel=None, patches=patches, speech=model.encode_audio(media.mel))
    torch.testing.assert_close(model.embed_media([media]), model.embed_media([given]))


def test_clips_together_equal_clips_alone(model):
    clips = [
        clip(frames=2, seed=1),
        clip(frames=6, seed=2),
        replace(clip(frames=1, seed=3), has_video=False, pixels=None),
    ]
    alone = torch.cat([model.embed_media([item]) for item in clips])
    torch.testing.assert_close(model.embed_media(clips), alone, rtol=1e-4, atol=1e-6)


def test_pixel_values_path_equals_media_path(model):
    media, inputs = clip(), row_with(2)
    packed = model(**inputs, media=[media]).logits
    batch = model(
        inputs["input_ids"][None],
        position_ids=inputs["position_ids"][None],
        pixel_values=normalize_pixels(media.pixels, dtype=torch.float32),
        mels=media.mel,
        duration=2,
    ).logits[0]
    torch.testing.assert_close(packed, batch, rtol=1e-4, atol=1e-5)


def test_image_tokens_without_media_are_refused(model):
    inputs = row_with(2)
    with pytest.raises(ValueError, match="16 image tokens but the media give 0"):
        model(**inputs)
    with pytest.raises(ValueError, match="16 image tokens but the media give 0"):
        model(inputs["input_ids"][None], position_ids=inputs["position_ids"][None])
    with pytest.raises(ValueError, match="media give 8"):
        model(**inputs, media=[clip(frames=1)])


def test_pixels_without_sound_are_refused(model):
    with pytest.raises(ValueError, match="pixel_values and mels together"):
        model(row_with(2)["input_ids"][None], pixel_values=torch.zeros(2, 3, 128, 128))
    with pytest.raises(ValueError, match="neither mel nor speech"):
        model.embed_media([replace(clip(), mel=None)])


def test_features_are_stored_and_used_in_place_of_the_towers(model, tmp_path, monkeypatch):
    freeze(model)
    digest = tower_digest([model.vision_model.vit, model.speech_encoder], settings=SETTINGS)
    store, media = FeatureStore(tmp_path, digest), clip()
    fresh = model.embed_media([media], features=store)
    assert store.has(feature_key(media))
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.setattr(model, "encode_vision", None)
    monkeypatch.setattr(model, "encode_audio", None)
    torch.testing.assert_close(model.embed_media([media], features=store), fresh, rtol=0, atol=0)


def test_a_dropped_modality_is_stored_apart():
    media = clip()
    assert feature_key(media) != feature_key(replace(media, has_video=False, pixels=None))
    assert feature_key(media) != feature_key(replace(media, has_audio=False))


def test_training_towers_bypass_the_store(model, tmp_path):
    store = FeatureStore(tmp_path, "digest")
    model.embed_media([clip()], features=store)
    assert not store.has(feature_key(clip()))


def test_digest_follows_tower_weights(model):
    towers = [model.vision_model.vit, model.speech_encoder]
    before = tower_digest(towers, settings=SETTINGS)
    assert before == tower_digest(towers, settings=SETTINGS)
    with torch.no_grad():
        model.speech_encoder.layer_norm.bias[0] += 1
    assert before != tower_digest(towers, settings=SETTINGS)


def test_a_feature_file_that_cannot_be_used_is_as_if_it_were_not_there(tmp_path, monkeypatch, capsys):
    store = FeatureStore(tmp_path, "digest")
    assert store.load("key") is None
    store.save("key", patches=torch.zeros(1, 2, 3), speech=torch.zeros(1, 2, 3))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert store.load("key") is None
    assert f"{path}: is damaged" in capsys.readouterr().err
    store.save("key", patches=torch.zeros(1, 2, 3), speech=torch.zeros(1, 2, 3))
    assert store.has("key")
    path.unlink()
    monkeypatch.setattr(store, "has", lambda key: True)  # another process removed it just now
    assert store.load("key") is None


@pytest.mark.parametrize("name", [".left.partial", ".tmpDjI2ca"])  # ours, and what safetensors writes first
def test_what_killed_writers_of_features_left_is_removed_and_a_file_under_way_is_not(tmp_path, name):
    store = FeatureStore(tmp_path, "digest")
    (store.folder / "ab").mkdir(parents=True)
    left, under_way = store.folder / "ab" / name, store.folder / "ab" / ".new.partial"
    for path in (left, under_way):
        path.write_bytes(b"half")
    os.utime(left, (1, 1))
    store.save("key", patches=torch.zeros(1, 2, 3), speech=torch.zeros(1, 2, 3))
    assert not left.exists()
    assert under_way.exists()
    assert store.has("key")


@pytest.mark.parametrize(
    ("seconds", "rows"), [(1, 50), (150, 50), (151, 51), (165, 56), (168, 57), (225, 75), (300, 100)]
)
def test_rows_per_frame_keep_the_floating_point_form(seconds, rows):
    assert rows_per_frame(seconds, max_num_frame=150, rows_per_second=50) == rows


def test_row_j_of_a_second_lands_on_token_j():
    rows = torch.arange(1.0, 13.0)[:, None]
    placed = audio_for_frames(rows, frames=2, tokens=6, seconds=2, max_num_frame=8, rows_per_second=5)
    assert placed[..., 0].tolist() == [[1, 2, 3, 4, 5, 0], [6, 7, 8, 9, 10, 0]]


def test_long_audio_is_spread_with_zeros_at_the_end():
    rows = torch.arange(1.0, 16.0)[:, None]
    placed = audio_for_frames(rows, frames=2, tokens=9, seconds=3, max_num_frame=2, rows_per_second=5)
    assert placed[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert placed[1, :, 0].tolist() == [9, 10, 11, 12, 13, 14, 15, 0, 0]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("seconds", "frames"), [(3, 2), (5, 3), (7, 7), (11, 6), (12, 6)])
def test_fewer_frames_than_seconds_hear_as_if_the_model_took_no_more(seconds, frames, exact):
    rows = torch.rand(seconds * 5, 4)
    rules = {"frames": frames, "tokens": 12, "seconds": seconds, "rows_per_second": 5, "exact": exact}
    granted = audio_for_frames(rows, max_num_frame=150, **rules)
    assert torch.equal(granted, audio_for_frames(rows, max_num_frame=frames, **rules))
    assert torch.equal(granted[granted.abs().sum(-1) > 0], rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 3}, "belong to 2 frames"),
        ({"seconds": 3, "frames": 3}, "need 15 rows"),
        ({"tokens": 4}, "only 4 tokens"),
    ],
)
def test_fusion_refuses_what_does_not_fit(change, message):
    arguments = {"frames": 2, "tokens": 6, "seconds": 2, "max_num_frame": 8, "rows_per_second": 5} | change
    with pytest.raises(ValueError, match=message):
        audio_for_frames(torch.zeros(10, 1), **arguments)


def test_absent_sound_is_an_all_zero_encoder_input(model) -> None:
    heard = clip()
    silent = replace(heard, has_audio=False, mel=None)
    zeros = replace(heard, has_audio=False, mel=torch.zeros_like(heard.mel))
    assert torch.equal(model.embed_media([silent]), model.embed_media([zeros]))
    assert not torch.equal(model.embed_media([silent]), model.embed_media([heard]))


def test_a_store_that_cannot_be_written_says_so_once_in_a_process_with_the_remedy(tmp_path, capsys):
    (tmp_path / "digest").write_text("")
    for _ in range(2):  # training has a store, and evaluation another one
        store = FeatureStore(tmp_path, "digest")
        store.save("key", patches=torch.zeros(1, 2, 3), speech=torch.zeros(1, 2, 3))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'digest'}: tower outputs are not stored: ")
    assert "remove the file that stands where a folder shall be" in line
    assert line.endswith("training goes on without")
