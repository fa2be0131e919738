"""A recipe's stages: which are skipped, refused, run again or measured again, and how the tree tells it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from arcvideo import pipeline
from arcvideo.lineage.manifest import Manifest, write_manifest
from arcvideo.recipe import Recipe, load_recipe, planned_stages, standing
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ensure_indexes
from tests.conftest import SmallWorld

STAGES = ["audio_warmup", "pretrain", "sft"]


@pytest.fixture
def recipe(small_world: SmallWorld, tmp_path: Path) -> Recipe:
    """Three stages over real shards; nothing has run."""
    ensure_indexes(expand_shards(f"{small_world.data}/*.tar"), progress=False)
    given = (word.partition("=")[::2] for word in small_world.overrides if not word.startswith("parent="))
    values = {key: yaml.safe_load(value) for key, value in given}
    content = {"name": "small", "run_dir": str(tmp_path / "run"), "stages": STAGES, "settings": values}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    return load_recipe(str(tmp_path / "small.yaml"))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that the pipeline starts; they are not run."""
    names: list[str] = []
    monkeypatch.setattr(pipeline, "_call", lambda command, what: names.append(what))
    monkeypatch.setattr(pipeline, "summarise", lambda recipe, stages: True)
    return names


def finish(recipe: Recipe, *names: str) -> None:
    """Write what finished stages leave, as far as skipping looks at it."""
    for one in standing(planned_stages(recipe)):
        if one.stage.name in names:
            assert one.asked is not None
            (one.stage.folder / "export").mkdir(parents=True)
            (one.stage.folder / "export" / "config.json").write_text("{}")
            manifest = Manifest(
                stage=one.stage.name, identity=str(one.asked.identity), parent=one.asked.parent, parent_path="x",
                code=one.asked.code, data=str(one.asked.data), config=one.asked.config, evaluation=one.asked.evaluation,
            )  # fmt: skip
            write_manifest(manifest, folder=one.stage.folder)


def test_finished_stages_are_skipped_and_the_others_run_in_order(recipe: Recipe, called: list[str]) -> None:
    finish(recipe, "audio_warmup")
    assert pipeline.run(recipe)
    assert called == ["pretrain", "sft"]


def test_a_change_makes_stale_what_it_affects_and_nothing_else(recipe: Recipe) -> None:
    finish(recipe, "audio_warmup", "pretrain", "sft")
    words = [one.state.word for one in standing(planned_stages(recipe))]
    assert words == ["finished"] * 3
    changed = [stage for stage in planned_stages(recipe) if stage.name != "pretrain"]
    changed.insert(1, planned_stages(recipe, extra=["optimizer.lr=0.5"])[1])
    found = standing(changed)
    assert [one.state.word for one in found] == ["finished", "stale", "stale"]
    assert found[1].state.reasons == ("optimizer.lr: 0.004 -> 0.5",)
    assert [reason.split(":")[0] for reason in found[2].state.reasons] == ["parent"]


def test_a_stale_stage_is_refused_with_the_difference(
    recipe: Recipe, called: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    finish(recipe, "audio_warmup")
    with pytest.raises(SystemExit) as caught:
        pipeline.run(recipe, extra=["runner.steps=4"])
    assert caught.value.code == pipeline.STALE_EXIT_CODE
    said = capsys.readouterr().err
    assert "runner.steps: 3 -> 4" in said
    assert "stale=rerun" in said
    assert called == []


def test_a_stale_stage_runs_again_on_request_and_nothing_is_deleted(recipe: Recipe, called: list[str]) -> None:
    finish(recipe, "audio_warmup", "pretrain")
    assert pipeline.run(recipe, extra=["runner.steps=4"], stale="rerun")
    assert called == ["audio_warmup", "pretrain", "sft"]
    kept = {path.name for path in Path(recipe.run_dir).iterdir() if (path / "manifest.json").exists()}
    assert kept == {"audio_warmup.old-1", "pretrain.old-1"}


def test_a_stale_stage_is_kept_on_request(recipe: Recipe, called: list[str]) -> None:
    finish(recipe, "audio_warmup", "pretrain")
    assert pipeline.run(recipe, extra=["runner.steps=4"], stale="keep")
    assert called == ["sft"]


def test_the_same_data_elsewhere_is_the_same_stage(
    recipe: Recipe, small_world: SmallWorld, called: list[str], tmp_path: Path
) -> None:
    finish(recipe, "audio_warmup", "pretrain", "sft")
    shutil.copytree(small_world.data, tmp_path / "moved")
    words = [f"data_dir={tmp_path / 'moved'}"]
    found = standing(planned_stages(recipe, extra=words))
    assert {one.state.word for one in found} <= {"finished", "unmeasured"}  # held-out shards count by their path


def test_another_evaluation_measures_again(recipe: Recipe, called: list[str]) -> None:
    finish(recipe, "audio_warmup", "pretrain", "sft")
    found = standing(planned_stages(recipe, extra=["evaluation.items=5"]))
    assert [one.state.word for one in found] == ["unmeasured"] * 3


def test_the_tree_tells_where_every_stage_stands(recipe: Recipe) -> None:
    finish(recipe, "audio_warmup", "pretrain")
    told = pipeline.status(recipe).splitlines()
    assert told[1].endswith("base  there")
    assert [line.strip().split("  ")[0] for line in told[2:]] == [f"└─ {name}" for name in STAGES]
    assert "finished" in told[2]
    assert "not begun" in told[4]


def test_two_stages_may_not_write_one_folder(recipe: Recipe, tmp_path: Path) -> None:
    twice = {"name": "twice", "run_dir": str(tmp_path), "stages": ["sft", {"stage": "sft", "runner": {"steps": 30}}]}
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(twice))
    with pytest.raises(ValueError, match=r"write the same folder \['sft'\].*output: NAME"):
        planned_stages(load_recipe(str(tmp_path / "twice.yaml")))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "name one recipe"),
        ("recipe=nowhere", "recipe=nowhere"),
        ("recipe=tiny_short", "did you mean 'tiny_shorts'?"),
        ("recipe=tiny_shorts stats", "did you mean 'status'?"),
        ("recipe=tiny_shorts stage=sft status", "stage= belongs to a recipe's stages only"),
        ("recipe=tiny_shorts stale=maybe", "choose one of refuse, rerun, keep"),
        ("recipe=tiny_shorts runner.stepz=3 status", "runner.stepz"),
    ],
)
def test_a_mistake_is_one_line(words: str, told: str) -> None:
    with pytest.raises(SystemExit, match="error: ") as caught:
        pipeline.main(shlex.split(words))
    assert told in str(caught.value)
