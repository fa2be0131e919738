"""Base weights: a directory that the first stage can start from, and features that its data path finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from arcvideo.feed.source import Source
from arcvideo.layout import MediaLayout
from arcvideo.lineage.identity import folder_digest
from arcvideo.model.disk.loading import load_model
from arcvideo.model.disk.tokenizer import load_tokenizer
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.towers.features import FeatureStore, tower_digest
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.synthetic.base import main
from arcvideo.synthetic.questions import questions, scene
from arcvideo.synthetic.script import SPOKEN_WORDS, draw_script
from arcvideo.synthetic.towers import frame_labels, row_labels
from tests.conftest import SmallWorld

LAYOUT = MediaLayout(image_size=128, mel_bins=80, audio_positions=400, audio_pooling=10)


@pytest.fixture(scope="module")
def model(small_world: SmallWorld) -> ArcVideoForConditionalGeneration:
    return load_model(small_world.base)


def test_what_was_reached_is_written_last(small_world: SmallWorld) -> None:
    reached = json.loads((small_world.base / "base.json").read_text())
    assert {"vision", "audio", "language", "features"} <= set(reached)
    assert reached["features"] == 16
    assert all(0 <= reached[name] <= 1 for name in ("vision", "audio", "language"))


def test_base_weights_that_are_made_again_are_the_same_parent(small_world: SmallWorld, tmp_path: Path) -> None:
    steps = [f"--{part}-steps=1" for part in ("vision", "audio", "language")]
    for name in ("one", "other"):
        words = [f"--data={small_world.data}", f"--out={tmp_path / name}", "--workers=1", "--threads=1", *steps]
        assert main(words) == 0
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "other")


def test_the_tokenizer_writes_what_the_clips_say(
    small_world: SmallWorld, model: ArcVideoForConditionalGeneration
) -> None:
    tokenizer = load_tokenizer(small_world.base)
    assert len(tokenizer) <= model.settings.text.vocab_size < len(tokenizer) + 64
    unseen = draw_script(split="test", index=7, seed=99, kind="full")
    for text in (scene(unseen), *(item["answer"] for item in questions(unseen))):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_features_of_the_training_clips_are_found_by_the_data_path(
    small_world: SmallWorld, model: ArcVideoForConditionalGeneration
) -> None:
    asked: dict[str, bool] = {}

    class Watched(FeatureStore):
        def has(self, key: str) -> bool:
            asked[key] = super().has(key)
            return asked[key]

    towers = (model.vision_model.vit, model.speech_encoder)
    store = Watched(small_world.features, tower_digest(towers, settings=model.settings))
    settings = DataSettings(
        sources={"train": SourceSettings(shards=str(small_world.data / "train-*.tar"), items_per_clip=1)},
        token_budget=1024,
        wording="brief",
    )
    source = Source(settings, layout=LAYOUT, tokenizer=load_tokenizer(small_world.base), seed=0, features=store)
    batches = [batch for step in range(source.steps_per_epoch) for batch in source.batches(step).batches]
    source.close()
    assert len(asked) == 16
    assert all(asked.values())
    media = [media for batch in batches for media in batch.media]
    assert all(one.pixels is None and one.mel is None for one in media)  # nothing had to be decoded
    with torch.no_grad():
        assert torch.isfinite(model.embed_media(media, features=store)).all()


def test_without_training_shards_the_remedy_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--data={tmp_path}", f"--out={tmp_path / 'base'}"]) == 2
    assert "python -m arcvideo.synthetic" in capsys.readouterr().err


def test_labels_say_what_is_seen_in_each_second() -> None:
    script = draw_script(split="train", index=0, seed=0, kind="full")
    labels = frame_labels(script)
    assert labels.shape == (script.duration, 6)
    assert labels[:, 0].tolist() == list(range(script.duration))
    for shape in script.shapes:
        column = 1 if shape.x < 0.5 else 3
        seen = labels[shape.start : shape.end, column]
        assert len(set(seen.tolist())) == 1
        assert int(seen[0]) not in labels[: shape.start, column].tolist() + labels[shape.end :, column].tolist()


def test_labels_say_what_is_heard_in_each_row() -> None:
    script = draw_script(split="train", index=0, seed=0, kind="full")
    labels = row_labels(script, rows=40, per_second=5)
    assert labels.shape == (40, 2)
    for word in script.speech:
        rows = (labels[:, 0] == SPOKEN_WORDS.index(word.text)).nonzero().flatten()
        assert len(rows) == 3  # 0.6 s
        assert word.start <= (rows[0] + 0.5) / 5 < word.end
