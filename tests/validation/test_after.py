"""A stage measured after it is trained: what a kill costs, what ranks change, and what cannot be scored."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.composing.config import ConfigError, plain_dict
from arcvideo.lineage.manifest import read_manifest
from arcvideo.lineage.state import state_of, wanted
from arcvideo.measuring.folder import Journal
from arcvideo.measuring.measure import measure
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.processes.ranks import join
from arcvideo.stage import measure_stage
from arcvideo.validation import after
from arcvideo.validation.asking import HeldOut
from arcvideo.verify import verify
from tests.compose import settings
from tests.conftest import SmallWorld
from tests.spawned import finished
from tests.test_stage import Finished, rows, run

OWN = f"{__name__}:letters"


def letters(text: str, truth: Mapping[str, Any]) -> float | None:
    """A metric of one's own: how many different letters an answer to a multiple choice has."""
    return float(len(set(text))) if truth["task"] == "mcq" else None


def state(done: Finished) -> str:
    return state_of(done.folder, expected=wanted(plain_dict(done.config), parent=done.parent.identity)).word


@pytest.fixture(scope="module")
def measured(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    words = [f"run_dir={tmp_path_factory.mktemp('runs')}", "data.packs_per_step=2", "evaluation.batch_prompts=2"]
    words += [f"evaluation.metrics=[mcq_accuracy,speech_qa,speech_qa_audio_zeroed,'{OWN}']"]
    return run(settings("stage=sft", *small_world.overrides, *words))


def copied(done: Finished, run_dir: Path) -> Finished:
    """The stage as it was before anything was measured."""
    shutil.copytree(done.folder, run_dir / "sft")
    for name in ("evaluation.json", "predictions.jsonl"):
        (run_dir / "sft" / name).unlink()
    shutil.rmtree(run_dir / "sft" / "evaluations")
    return replace(done, config=replace(done.config, run_dir=str(run_dir)))


@pytest.mark.parametrize("word", ["evaluation.metrics=[]", "evaluation.shards=null"])
def test_a_stage_without_evaluation_trains_exports_and_finishes(
    small_world: SmallWorld, tmp_path: Path, word: str
) -> None:
    done = run(settings("stage=sft", *small_world.overrides, f"run_dir={tmp_path}", "runner.steps=1", word))
    assert state(done) == "finished"
    assert (done.folder / "export" / "config.json").exists()
    assert not (done.folder / "evaluation.json").exists()
    assert done.config.evaluation.optimized == "train/loss"
    assert read_manifest(done.folder).value("train/loss") is not None


def test_a_figure_that_is_not_measured_cannot_be_optimized(small_world: SmallWorld) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.optimize='mcq_accuracy' is not measured.*train/loss"):
        settings("stage=sft", *small_world.overrides, "evaluation.shards=null", "evaluation.optimize=mcq_accuracy")
    with pytest.raises(ConfigError, match=r"evaluation\.best judges by .* set evaluation\.every"):
        settings("stage=sft", *small_world.overrides, "evaluation.best=true")
    with pytest.raises(ConfigError, match=r"evaluation\.every=1 measures nothing"):
        settings("stage=grpo", *small_world.overrides, "evaluation.every=1", "evaluation.metrics=[]")


def test_what_no_metric_can_score_is_told_before_the_first_step(small_world: SmallWorld, tmp_path: Path) -> None:
    # Asked plainly, no answer has a form.
    words = [*small_world.overrides, f"run_dir={tmp_path}", "evaluation.metrics=[format_valid]"]
    with pytest.raises(ValueError, match=r"none of evaluation\.metrics=\['format_valid'\] has an item among"):
        run(settings("stage=sft", *words))
    assert not (tmp_path / "sft" / "metrics.jsonl").exists()
    assert not (tmp_path / "sft" / "checkpoints").exists()


def test_every_measurement_has_its_own_folder_with_scores_for_each_tag(measured: Finished) -> None:
    (folder,) = (measured.folder / "evaluations").iterdir()
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["metrics"] == json.loads((measured.folder / "evaluation.json").read_text())
    assert scores["metrics"][OWN]["n"] == scores["metrics"]["mcq_accuracy"]["n"] > 0
    tagged = {row["key"] for row in rows(folder / "answers-0.jsonl") if row.get("tags")}
    assert tagged
    assert scores["tags"]
    card = json.loads((folder / "card.json").read_text())
    assert card["origin"]["questions"]
    assert card["scoring"]["chosen"]
    assert "| mcq_accuracy |" in (measured.folder / "export" / "README.md").read_text()


def test_an_export_is_measured_on_the_device_of_its_rank(
    measured: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = copied(measured, tmp_path)

    def devices(held: HeldOut, model: torch.nn.Module, *, folder: Path) -> dict[str, Any]:
        (folder / "predictions.jsonl").touch()
        return {parameter.device.type: {} for parameter in model.parameters()}

    monkeypatch.setattr(HeldOut, "measure", devices)
    # Weights on meta stand for weights on a GPU: wherever the rank is, the model has to go.
    world = replace(join(), device=torch.device("meta"))
    assert list(after._figures(done.config, world=world, manifest=read_manifest(measured.folder))) == ["meta"]


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


def test_a_kill_while_measuring_costs_neither_the_weights_nor_an_answer(
    measured: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = copied(measured, tmp_path)
    (export,) = (done.folder / "export").glob("*.safetensors")
    written = export.stat().st_mtime_ns
    add, calls = Journal.add, []

    def killed(journal: Journal, *words: Any, **more: Any) -> None:
        if len(calls) == 2:
            raise Killed
        calls.append(words)
        add(journal, *words, **more)

    changed = replace(done, config=replace(done.config, evaluation=replace(done.config.evaluation, bootstrap=21)))
    assert state(changed) == "unmeasured"
    monkeypatch.setattr(Journal, "add", killed)
    with pytest.raises(Killed):
        measure_stage(changed.config, parent=done.parent)
    monkeypatch.undo()
    assert state(changed) == "unmeasured"
    (folder,) = (done.folder / "evaluations").iterdir()
    before = (folder / "answers-0.jsonl").read_text()
    assert before
    measure_stage(changed.config, parent=done.parent)
    assert state(changed) == "finished"
    assert (folder / "answers-0.jsonl").read_text().startswith(before)
    asked = [(row["arm"], row["key"]) for row in rows(folder / "answers-0.jsonl") if "text" in row]
    assert len(asked) == len(set(asked))
    assert export.stat().st_mtime_ns == written
    ours, theirs = (json.loads((one.folder / "evaluation.json").read_text()) for one in (done, measured))
    assert {name: row["value"] for name, row in ours.items()} == {name: row["value"] for name, row in theirs.items()}
    assert rows(done.folder / "predictions.jsonl") == rows(measured.folder / "predictions.jsonl")
    assert {"metrics.jsonl", "predictions.jsonl"} <= read_manifest(done.folder).journals.keys()
    assert not verify(done.folder).damages


@pytest.mark.slow
def test_a_kill_behind_the_export_leaves_a_stage_that_only_has_to_be_measured(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(journal: Journal, *words: Any, **more: Any) -> None:
        raise Killed

    monkeypatch.setattr(Journal, "add", killed)
    config = settings("stage=sft", *small_world.overrides, f"run_dir={tmp_path}", "runner.steps=1")
    with pytest.raises(Killed):
        run(config)
    manifest = read_manifest(tmp_path / "sft")
    assert manifest.exported
    assert not any(name.startswith("eval/") for name in manifest.metrics)
    monkeypatch.undo()
    left = [sys.executable, "-m", "arcvideo.train", "stage=sft", *small_world.overrides, f"run_dir={tmp_path}"]
    again = finished([*left, "runner.steps=1"], seconds=600)
    assert again.returncode == 0, again.stderr
    assert "is measured again" in again.stdout
    assert "eval/mcq_accuracy" in read_manifest(tmp_path / "sft").metrics


def measured_by(ranks: int, done: Finished, *, words: Sequence[str], run_dir: Path) -> Path:
    """Measure a copy of a stage in processes of their own; returns its folder."""
    copied(done, run_dir)
    launcher = ["-m", "arcvideo.torchrun", "--nproc_per_node", str(ranks)] if ranks > 1 else ["-m", "arcvideo.train"]
    told = finished([sys.executable, *launcher, "stage=sft", *words, f"run_dir={run_dir}"], seconds=600,
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert (run_dir / "sft" / "evaluation.json").exists(), told.stdout
    return run_dir / "sft"


@pytest.mark.slow
def test_two_ranks_share_the_clips_and_come_to_the_figures_of_one(
    measured: Finished, small_world: SmallWorld, tmp_path: Path
) -> None:
    words = [*small_world.overrides, "data.packs_per_step=2", "evaluation.batch_prompts=2", "evaluation.bootstrap=21"]
    alone, both = (measured_by(ranks, measured, words=words, run_dir=tmp_path / str(ranks)) for ranks in (1, 2))
    assert (alone / "evaluation.json").read_text() == (both / "evaluation.json").read_text()
    assert (alone / "predictions.jsonl").read_text() == (both / "predictions.jsonl").read_text()
    journals = sorted(both.glob("evaluations/*/answers-*.jsonl"))
    asked = [{(row["arm"], row["key"]) for row in rows(path) if "text" in row} for path in journals]
    assert [bool(share) for share in asked] == [True, True], "each rank answers its share"
    assert not asked[0] & asked[1]


@pytest.mark.slow
def test_the_stage_and_the_command_come_to_the_same_figures(
    measured: Finished, small_world: SmallWorld, tmp_path: Path
) -> None:
    done = copied(measured, tmp_path)
    evaluation = replace(done.config.evaluation, items=0)
    measure_stage(replace(done.config, evaluation=evaluation), parent=done.parent)
    ours = json.loads((done.folder / "evaluation.json").read_text())
    asked = EvaluateSettings(
        checkpoint=str(done.folder), data=evaluation.held_out, metrics=["mcq_accuracy", "speech_qa", OWN],
        max_new_tokens=evaluation.max_new_tokens, bootstrap=evaluation.bootstrap, out=str(tmp_path / "asked"),
        proof=False, device="cpu",
    )  # fmt: skip
    _, scores = measure(asked)
    assert scores is not None
    for name in asked.metrics:
        assert scores["metrics"][name] == ours[name]
