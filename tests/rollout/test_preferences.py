"""DPO from pairs in shards to a trained stage: shared prefixes, the reference, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arcvideo.feed.source import Source
from arcvideo.lineage.manifest import read_manifest
from arcvideo.lineage.parents import resolve_parent
from arcvideo.objectives.dpo import Dpo
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.rollout.preferences import ReferenceSource
from arcvideo.shards.write import Record, write_shards
from arcvideo.stage import run_stage
from arcvideo.tasks import RecordError, make_pair
from arcvideo.types import model_inputs
from tests.compose import settings as stage_settings
from tests.conftest import SmallWorld
from tests.data.build import mp4, wav
from tests.rollout.world import LAYOUT, Engine, make_model, tokenizer

QA = {"task": "qa", "question": "Which is heard?", "answer": "one two", "think": "I hear"}
PAIR = {**QA, "rejected": "<think>no</think><answer>red</answer>"}


def test_the_rejected_answer_is_a_text_as_it_stands_or_is_styled_like_the_own_one() -> None:
    about = {"key": "c/0", "media_key": None}
    chosen, rejected = make_pair(PAIR, style="think", **about)
    assert chosen.turns[0].answer == "<think>I hear</think><answer>one two</answer>"
    assert rejected.turns[0].answer == PAIR["rejected"]
    assert (chosen.key, rejected.key) == ("c/0", "c/0#rejected")
    styled = {**QA, "rejected": {"answer": "red", "think": "no"}}
    assert make_pair(styled, style="think", **about)[1].turns[0].answer == PAIR["rejected"]
    assert make_pair(styled, style="plain", **about)[1].turns[0].answer == "red"
    for wrong, reason in (
        ({}, "no_rejected"),
        ({"rejected": 3}, "bad_rejected"),
        ({"rejected": "one two"}, "bad_rejected"),
    ):
        with pytest.raises(RecordError, match=reason):
            make_pair({**QA, **wrong}, **about)


def pair_source(folder: Path, **changes: Any) -> Source:
    """Three clips with two pairs each and one question without, and a text with a pair."""
    items = [PAIR, QA, {**PAIR, "rejected": "blue"}]
    media = [{"mp4": mp4(2.0, shade=1)}, {"wav": wav()}, {"mp4": mp4(1.0, shade=9)}, {}]
    write_shards((Record(key=f"c{n}", content={"items": items}, media=one) for n, one in enumerate(media)), out=folder)
    source = SourceSettings(shards=f"{folder}/shard-*.tar", style="think")
    data = DataSettings(**{"sources": {"pairs": source}, "wording": "brief", "token_budget": 4096, **changes})
    return Source(data, layout=LAYOUT, tokenizer=tokenizer(), seed=0, pairs=True)


def test_a_pair_is_two_branches_of_one_prefix_and_every_pair_weighs_the_same(tmp_path: Path) -> None:
    source = pair_source(tmp_path)
    (batch,) = source.batches(0)
    assert len(batch.keys) == 16
    assert [key.removesuffix("#rejected") for key in batch.keys[1::2]] == list(batch.keys[::2])
    assert not any(key.endswith("/1") for key in batch.keys)  # has no rejected answer
    assert len(batch.media) == 3
    assert (batch.segments.parents == -1).sum() == 3 + 4  # three prefixes, and the text's branches stand alone
    weights = torch.zeros(16).index_add(0, batch.target_samples, batch.target_weights)
    torch.testing.assert_close(weights, torch.ones(16))
    assert source.counts()["pairs"]["seen"] == 8


def test_before_the_first_update_the_reference_equals_the_policy(tmp_path: Path) -> None:
    model = make_model()
    pairs = ReferenceSource(pair_source(tmp_path), engine=Engine(model=model))
    (batch,) = pairs.batches(0)
    assert all(media.patches is not None and media.pixels is None for media in batch.media)
    output = model(**model_inputs(batch))
    loss = Dpo()(output.logits, batch)
    assert float(loss.total / batch.target_weights.sum()) == pytest.approx(np.log(2), rel=1e-5)
    with torch.no_grad():
        next(model.language_model.parameters()).add_(0.1)
    (later,) = pairs.batches(0)
    torch.testing.assert_close(later.extra["ref_logprobs"], batch.extra["ref_logprobs"])  # it does not move
    assert pairs.state() == pairs.source.state()


def test_the_stage_trains_towards_the_chosen_answers(small_world: SmallWorld, tmp_path: Path) -> None:
    items = [{**QA, "answer": "red circle", "rejected": {"answer": "blue square", "think": "no"}}]
    records = (
        Record(key=f"c{number}", content={"items": items}, media={"mp4": mp4(2.0, shade=number)}) for number in range(4)
    )
    write_shards(records, out=tmp_path / "data", name="pairs")
    config = stage_settings(
        "stage=dpo",
        *small_world.overrides,
        f"run_dir={tmp_path / 'run'}",
        f"data.sources.pairs.shards={tmp_path}/data/pairs-*.tar",
        "runner.steps=8",
        "optimizer.lr=0.005",
        "optimizer.muon_lr=0.005",
        "evaluation.shards=",
    )
    parent = resolve_parent(run_dir=tmp_path, stage="dpo", parent="", override=small_world.base)
    run_stage(config, parent=parent)
    rows = [json.loads(line) for line in (config.stage_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    assert rows[0]["train/loss"] == pytest.approx(np.log(2), rel=1e-4)
    assert rows[0]["train/rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert rows[-1]["train/rewards/margins"] > 0.1
    assert rows[-1]["train/rewards/accuracies"] == 1.0
    assert read_manifest(config.stage_dir).seen == {"pairs": 32}
