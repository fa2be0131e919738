"""A recipe with gates: the pipeline stops behind the stage that may not go on, with the table and what can be done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from arcvideo import pipeline
from arcvideo.composing.config import plain_dict
from arcvideo.composing.recipe import load_recipe, planned_stages
from arcvideo.lineage.manifest import Manifest, write_manifest
from tests.test_pipeline import STAGES, measured


def finished(tmp_path: Path, gates: list[dict[str, Any]]) -> str:
    """Return a recipe of three stages that have all run; the second answers better than the third."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    places = {"base": str(tmp_path / "base"), "data_dir": str(tmp_path / "data")}
    run_dir = tmp_path / "run"
    content = {"name": "small", "run_dir": str(run_dir), "stages": STAGES, "settings": places, "gates": gates}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    for stage in planned_stages(load_recipe(str(path))):
        (stage.folder / "export").mkdir(parents=True)
        manifest = Manifest(
            stage=stage.name, identity=stage.name, parent="x", parent_path="x", code={}, data="x",
            config=plain_dict(stage.config),
        )  # fmt: skip
        write_manifest(manifest, folder=stage.folder)
    measured(run_dir / "pretrain", metric="mcq_accuracy", scores=[1.0, 1.0, 1.0, 0.0] * 10)
    measured(run_dir / "sft", metric="mcq_accuracy", scores=[1.0, 0.0, 0.0, 0.0] * 10)
    return str(path)


def ended(recipe: str, *words: str) -> int:
    with pytest.raises(SystemExit) as end:
        pipeline.main([f"recipe={recipe}", "stale=keep", *words])  # their shards are gone, so nothing is compared
    return end.value.code if isinstance(end.value.code, int) else -1


PRETRAIN = {"stage": "pretrain", "metric": "mcq_accuracy"}


def test_a_shut_gate_stops_the_run_behind_its_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = finished(tmp_path, [PRETRAIN | {"at_least": 0.9}])
    assert ended(recipe) == pipeline.GATE_EXIT_CODE
    said = capsys.readouterr()
    assert "[small] pretrain: gates shut\n  SHUT  mcq_accuracy  at least 0.9  0.750 >= 0.9" in said.out
    assert "sft" not in said.out
    for remedy in ("stale=rerun", "change `gates`", "gates=pass"):
        assert remedy in said.err
    assert not (tmp_path / "run" / "summary.json").exists()
    noted = json.loads((tmp_path / "run" / "gates.json").read_text())
    assert noted == {"pretrain": [{"metric": "mcq_accuracy", "met": False, "reason": "0.750 >= 0.9"}]}


def test_a_shut_gate_is_passed_on_request_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = finished(tmp_path, [PRETRAIN | {"at_least": 0.9}])
    assert ended(recipe, "gates=pass") == 0
    assert "goes on all the same, as gates=pass says" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_stage_may_not_lose_what_its_parent_could(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = {"stage": "sft", "metric": "mcq_accuracy", "not_below_stage": "parent", "within": 0.1}
    recipe = finished(tmp_path, [PRETRAIN | {"at_least": 0.7, "surely": False}, lost])
    assert ended(recipe) == pipeline.GATE_EXIT_CODE
    said = capsys.readouterr().out
    assert "[small] pretrain: gates open" in said
    assert "SHUT  mcq_accuracy  at most 0.1 worse than pretrain  minus pretrain: -0.500" in said


@pytest.mark.parametrize(
    ("gates", "words", "told"),
    [
        ([{"stage": "dpo", "metric": "mcq_accuracy"}], [], "gates[0].stage=dpo: no such stage"),
        ([PRETRAIN | {"metric": "mcq_acuracy"}], [], "pretrain does not measure mcq_acuracy"),
        ([], ["gates=open"], "gates=open: choose one of stop, pass"),
    ],
)
def test_gates_that_make_no_sense_are_refused_before_a_stage_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gates: list[dict[str, Any]], words: list[str], told: str
) -> None:
    recipe = finished(tmp_path, gates)
    with pytest.raises(SystemExit) as end:
        pipeline.main([f"recipe={recipe}", "stale=keep", *words])
    assert told in str(end.value.code)
    assert "finished" not in capsys.readouterr().out
