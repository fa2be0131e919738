"""Going on from a checkpoint of another run: the bits of a longer run, lineage, and refusals with their reasons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from arcvideo.composing.config import RunConfig, plain_dict
from arcvideo.lineage.continued import continue_problems, continued_from
from arcvideo.lineage.manifest import read_manifest
from arcvideo.lineage.parents import resolve_parent
from arcvideo.lineage.state import state_of, wanted
from arcvideo.stage import run_stage
from tests.compose import settings
from tests.conftest import SmallWorld


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows}


def train(config: RunConfig) -> Path:
    parent = resolve_parent(
        run_dir=Path(config.run_dir), stage=config.stage.name, parent="base", override=Path(str(config.parent))
    )
    run_stage(config, parent=parent)
    return config.stage_dir


def test_more_steps_go_on_as_the_longer_run_would_have_and_nothing_is_destroyed(
    small_world: SmallWorld, tmp_path: Path
) -> None:
    words = [
        "stage=sft",
        *small_world.overrides,
        f"run_dir={tmp_path}",
        "evaluation.shards=''",
        "schedule.name=constant",
    ]
    first = train(settings(*words))
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    straight = train(settings(*words, "runner.steps=5", "output=straight"))
    longer = settings(*words, "runner.steps=5", "output=longer", f"continue_from={first}")
    went_on = train(longer)
    expected = losses(straight)
    assert losses(went_on) == {step: expected[step] for step in (3, 4)}
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before
    manifest, old = read_manifest(went_on), read_manifest(first)
    assert (manifest.steps, manifest.parent) == (5, old.parent)
    assert manifest.continued["identity"] == old.identity
    assert manifest.continued["step"] == 3
    assert manifest.identity != read_manifest(straight).identity
    assert state_of(went_on, expected=wanted(plain_dict(longer), parent=manifest.parent)).word == "finished"
    without = wanted(plain_dict(replace(longer, continue_from=None)), parent=manifest.parent)
    assert "continue_from" in " ".join(state_of(went_on, expected=without).reasons)

    checkpoint = continued_from(went_on)
    assert checkpoint.path.name == "step-5"
    refused = [
        (["runner.steps=5", "output=x"], "they are counted on"),
        (["runner.steps=9", "output=longer"], "give another output=NAME"),
        (["runner.steps=9", "output=x", "stage.train=[llm]"], "stage.train=['llm'] cannot change"),
        (["runner.steps=9", "output=x", "lora.rank=2"], "lora"),
        (["runner.steps=9", "output=x", "optimizer.name=adamw"], "optimizer state belongs to another optimizer"),
    ]
    for more, why in refused:
        config = settings(*words, *more)
        told = list(
            continue_problems(checkpoint, config=plain_dict(config), stage_dir=config.stage_dir, parent=manifest.parent)
        )
        assert len(told) >= 1, more
        assert why in told[0], more
    config = settings(*words, "runner.steps=9", "output=x", "optimizer.lr=1e-5", "data.token_budget=512")
    asked = plain_dict(config)
    assert list(continue_problems(checkpoint, config=asked, stage_dir=config.stage_dir, parent=manifest.parent)) == []
    (told,) = continue_problems(checkpoint, config=asked, stage_dir=config.stage_dir, parent="0" * 64)
    assert "started from other weights" in told


def test_what_is_no_checkpoint_is_refused_with_the_setting_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"continue_from=.*no checkpoint there"):
        continued_from(tmp_path)
    (tmp_path / "step-3").mkdir()
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        continued_from(tmp_path / "step-3")
    (tmp_path / "step-3" / "manifest.json").write_text('{"step": 3, "identity": "a", "seal": "b"}')
    with pytest.raises(ValueError, match="changed after it was written"):
        continued_from(tmp_path / "step-3")
