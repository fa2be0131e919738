"""A recipe's stages: which are skipped, refused, run again or measured again, and how the tree tells it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from arcvideo import pipeline
from arcvideo.composing.config import plain_dict
from arcvideo.composing.recipe import Preparation, Recipe, load_recipe, planned_stages, standing
from arcvideo.evaluation.predictions import Prediction, write_predictions
from arcvideo.lineage.lock import alone_in
from arcvideo.lineage.manifest import Manifest, write_manifest
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ensure_indexes
from tests.conftest import SmallWorld
from tests.spawned import children, running

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


def test_a_folder_in_which_a_job_still_works_is_not_moved_away(recipe: Recipe, called: list[str]) -> None:
    finish(recipe, "audio_warmup")
    folder = Path(recipe.run_dir) / "audio_warmup"
    words: dict[str, Any] = {"extra": ["runner.steps=4"], "stale": "rerun"}
    with ThreadPoolExecutor(2) as threads:
        with alone_in(folder):
            running = [threads.submit(pipeline.run, recipe, **words) for _ in range(2)]
            time.sleep(0.5)
            assert (folder / "manifest.json").exists()
        assert all(run.result() for run in running)
    assert not folder.with_name("audio_warmup.old-2").exists()
    assert (folder.with_name("audio_warmup.old-1") / "manifest.json").exists()
    assert called.count("audio_warmup") == 2


def test_two_pipelines_prepare_one_after_the_other(
    recipe: Recipe, called: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, begun = tmp_path / "made", []

    def call(command: list[str], what: str) -> None:
        begun.append(what)
        if what == "data":
            time.sleep(0.3)
            made.write_text("")

    monkeypatch.setattr(pipeline, "_call", call)
    step = Preparation(name="data", makes=str(made), command="-c pass")
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(pipeline.run, [replace(recipe, prepare=[step])] * 2))
    assert begun.count("data") == 1


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


@pytest.mark.slow
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["alone", "with its stage"])
def test_a_signal_to_the_pipeline_saves_and_leaves_no_orphan(
    recipe: Recipe, tmp_path: Path, send: Callable[[int, int], None]
) -> None:
    command = [sys.executable, "-m", "arcvideo.pipeline", f"recipe={tmp_path / 'small.yaml'}", "runner.steps=5000",
               "runner.save_every=0"]  # fmt: skip
    log, folder = tmp_path / "log", Path(recipe.run_dir) / "audio_warmup"
    words: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ}, "start_new_session": True}
    with log.open("w") as out, running(command, stdout=out, stderr=out, **words) as pipeline:
        deadline = time.monotonic() + 600
        while "step 2/5000" not in log.read_text():
            assert pipeline.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (stage,) = children(pipeline.pid)
        send(pipeline.pid, signal.SIGTERM)
        assert pipeline.wait(300) == 85
    assert not Path(f"/proc/{stage}").exists()
    assert list((folder / "checkpoints").glob("step-*"))
    assert not (folder / "manifest.json").exists()
    assert "audio_warmup was asked to stop; the same command continues" in log.read_text()


def test_ctrl_c_while_a_pipeline_prepares_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    content = yaml.safe_load((tmp_path / "small.yaml").read_text())
    command = f"-m arcvideo.synthetic --out {tmp_path / 'made'} --workers 1"
    content["prepare"] = [{"name": "data", "command": command, "makes": str(tmp_path / "made" / "dataset.json")}]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    words: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with running([sys.executable, "-m", "arcvideo.pipeline", f"recipe={tmp_path / 'small.yaml'}"], **words,
                 preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as pipeline:  # fmt: skip
        deadline = time.monotonic() + 600
        while not (tmp_path / "made").exists():
            assert pipeline.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pipeline.send_signal(signal.SIGINT)
        assert pipeline.communicate(timeout=300)[1] == "\ninterrupted\n"
        assert pipeline.returncode == 130


# --- the verdict ---


def measured(folder: Path, *, metric: str, scores: list[float]) -> None:
    """What an evaluation of a stage leaves."""
    mean = sum(scores) / len(scores)
    found = {metric: {"value": mean, "low": mean - 0.1, "high": mean + 0.1, "chance": 0.25, "n": len(scores)}}
    (folder / "evaluation.json").write_text(json.dumps(found))
    rows = [
        Prediction(metric=metric, key=f"clip-{place:02}/0", question="?", truth="A", prediction="A", score=score)
        for place, score in enumerate(scores)
    ]
    write_predictions(folder / "predictions.jsonl", predictions=rows)


SFT = {"stage": "sft", "metric": "mcq_accuracy"}
PRETRAIN = {"stage": "pretrain", "metric": "mcq_accuracy"}


@pytest.mark.parametrize(
    ("targets", "met"),
    [
        ([SFT | {"at_least": 0.7, "above_stage": "pretrain"}, PRETRAIN | {"at_most": 0.3}], [True, True]),
        ([SFT | {"at_least": 0.9}, PRETRAIN | {"at_most": 0.3}], [False, True]),
        ([SFT | {"at_least": 0.7}, PRETRAIN | {"above_stage": "sft"}], [True, False]),
        ([SFT | {"at_least": 0.7}, {"stage": "sft", "metric": "grounding_miou", "at_most": 1.0}], [True, False]),
        ([SFT | {"at_least": 0.7}, {"stage": "audio_warmup", "metric": "mcq_accuracy", "at_most": 1.0}], [True, False]),
        ([], []),
    ],
    ids=["met", "missed", "below its parent", "no such metric", "no evaluation", "no targets"],
)
def test_a_missed_target_ends_the_pipeline_with_status_3_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], targets: list[dict[str, Any]], met: list[bool]
) -> None:
    path, run_dir = tmp_path / "small.yaml", tmp_path / "run"
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    places = {"base": str(tmp_path / "base"), "data_dir": str(tmp_path / "data")}
    content = {"name": "small", "run_dir": str(run_dir), "stages": STAGES, "settings": places, "targets": targets}
    path.write_text(yaml.safe_dump(content))
    for stage in planned_stages(load_recipe(str(path))):
        (stage.folder / "export").mkdir(parents=True)
        manifest = Manifest(
            stage=stage.name, identity=stage.name, parent="x", parent_path="x", code={}, data="x",
            config=plain_dict(stage.config),
        )  # fmt: skip
        write_manifest(manifest, folder=stage.folder)
    measured(run_dir / "sft", metric="mcq_accuracy", scores=[1.0, 1.0, 1.0, 0.0] * 10)
    measured(run_dir / "pretrain", metric="mcq_accuracy", scores=[1.0, 0.0, 0.0, 0.0] * 10)
    with pytest.raises(SystemExit) as ended:
        pipeline.main([f"recipe={path}", "stale=keep"])  # their shards are gone, so nothing is compared
    assert ended.value.code == (0 if all(met) else 3)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["passed"] is all(met)
    assert [row["met"] for row in summary["targets"]] == met
    said = capsys.readouterr().out
    assert said.count("MISSED") == met.count(False)
    for target, good in zip(targets, met, strict=True):
        (line,) = [line for line in said.splitlines() if f"{target['stage']}: {target['metric']}" in line]
        assert line.startswith("met" if good else "MISSED")
    assert (run_dir / "report.html").exists()
