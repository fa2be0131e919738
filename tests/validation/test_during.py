"""A stage measured during training: the weights do not move by it, the best are kept, and a resumed run goes on."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.composing.config import RunConfig, plain_dict
from arcvideo.lineage.manifest import read_manifest
from arcvideo.lineage.parents import resolve_parent
from arcvideo.lineage.state import wanted
from arcvideo.measuring.folder import read_answers
from arcvideo.saving import checkpoint
from arcvideo.saving.checkpoint import read_checkpoint
from arcvideo.stage import rehearse, run_stage
from tests.compose import settings
from tests.conftest import SmallWorld
from tests.test_stage import GRPO, OWN_REWARD, rows, run, weights

RUINOUS = ("optimizer.name=adamw", "optimizer.lr=0.5", "schedule.name=constant", "runner.liveness=false")
"""Each step makes the model worse, so that the first measurement is the best."""
CHOOSES = ("evaluation.every=1", "evaluation.metrics=[]", "evaluation.loss_packs=2", "evaluation.best=true",
           "evaluation.patience=2", "runner.keep_last=1")  # fmt: skip


def config_of(world: SmallWorld, run_dir: Path, *words: str) -> RunConfig:
    return settings("stage=sft", *world.overrides, f"run_dir={run_dir}", *words)


@pytest.mark.slow
def test_measuring_during_training_moves_no_bit_of_the_weights(small_world: SmallWorld, tmp_path: Path) -> None:
    quiet = run(config_of(small_world, tmp_path / "quiet", "evaluation.shards=''"))
    told = run(config_of(small_world, tmp_path / "told", "evaluation.every=2", "evaluation.loss_packs=2"))
    ours, theirs = (weights(one.folder / "export") for one in (told, quiet))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read_manifest(told.folder).identity == read_manifest(quiet.folder).identity
    lines = rows(told.folder / "metrics.jsonl")
    plain = [line["train/loss"] for line in lines if "train/loss" in line]
    assert plain == [line["train/loss"] for line in rows(quiet.folder / "metrics.jsonl")]
    # After every second of three steps, and after the last one.
    during = [line for line in lines if "train/loss" in line]
    assert ["eval/loss" in line for line in during] == [False, True, True]
    assert {path.name for path in (told.folder / "evaluations").glob("step-*")} == {"step-2", "step-3"}
    # The weights of the last step are those that are measured at the end.
    assert during[-1]["eval/mcq_accuracy"] == lines[-1]["eval/mcq_accuracy"]
    manifest = read_manifest(told.folder)
    assert manifest.value("loss") == during[-1]["eval/loss"]
    assert manifest.value("mcq_accuracy") == during[-1]["eval/mcq_accuracy"]


def test_the_best_weights_come_out_and_a_run_that_gets_worse_ends(small_world: SmallWorld, tmp_path: Path) -> None:
    done = run(config_of(small_world, tmp_path, *RUINOUS, *CHOOSES, "runner.steps=8"))
    lines = rows(done.folder / "metrics.jsonl")
    losses = [line["eval/loss"] for line in lines]
    best = 1 + min(range(len(losses)), key=losses.__getitem__)
    assert len(lines) == best + 2 < 8, losses
    manifest = read_manifest(done.folder)
    assert manifest.steps == len(lines)
    assert manifest.metrics["eval/best_step"] == best
    assert manifest.value("loss") == min(losses)
    saved = read_checkpoint(done.folder / "checkpoints" / f"step-{best}").tensors("weights")
    out = weights(done.folder / "export")
    assert set(saved) <= set(out)
    assert all(torch.equal(out[name], saved[name]) for name in saved)


@pytest.mark.slow
@pytest.mark.parametrize("until", [1, 2, 3])
def test_a_run_that_was_stopped_chooses_what_a_straight_run_chooses(
    small_world: SmallWorld, tmp_path: Path, until: int
) -> None:
    words = (*RUINOUS, *CHOOSES, "runner.steps=6")
    straight = run(config_of(small_world, tmp_path / "straight", *words))
    config = config_of(small_world, tmp_path / "cut", *words)
    parent = resolve_parent(run_dir=tmp_path, stage="sft", parent="base", override=small_world.base)
    rehearse(config, parent=parent, until=until)
    run_stage(config, parent=parent)
    ours, theirs = (read_manifest(folder) for folder in (config.stage_dir, straight.folder))
    assert (ours.steps, ours.metrics["eval/best_step"]) == (theirs.steps, theirs.metrics["eval/best_step"])
    logged = [[line["eval/loss"] for line in rows(folder / "metrics.jsonl")]
              for folder in (config.stage_dir, straight.folder)]  # fmt: skip
    assert logged[0] == logged[1]
    mine, other = (weights(folder / "export") for folder in (config.stage_dir, straight.folder))
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_what_chooses_the_weights_counts_in_a_stages_identity_and_looking_alone_does_not(
    small_world: SmallWorld, tmp_path: Path
) -> None:
    plain = config_of(small_world, tmp_path)
    run_once = wanted(plain_dict(plain), parent="p")
    if run_once.data is None:  # indexes are made by whoever reads first
        run(replace(plain, runner=replace(plain.runner, steps=1)))

    def identity(*words: str) -> str | None:
        return wanted(plain_dict(config_of(small_world, tmp_path, *words)), parent="p").identity

    looking = identity("evaluation.every=1")
    assert looking is not None
    assert looking == identity("evaluation.every=7", "evaluation.loss_packs=3") == identity()
    choosing = [
        identity("evaluation.every=1", *words)
        for words in (
            ("evaluation.best=true",),
            ("evaluation.patience=3",),
            ("evaluation.best=true", "evaluation.every=2"),
            ("evaluation.best=true", "evaluation.optimize=loss"),
            ("evaluation.best=true", f"evaluation.shards={small_world.data}/train-*.tar"),
        )
    ]
    assert None not in choosing
    assert len({looking, *choosing}) == 6


def test_a_figure_without_items_cannot_choose(small_world: SmallWorld, tmp_path: Path) -> None:
    words = ("evaluation.every=1", "evaluation.best=true", "evaluation.metrics=[mcq_accuracy,format_valid]")
    with pytest.raises(
        ValueError, match=r"evaluation\.optimize=format_valid chooses the weights, but no held-out item"
    ):
        run(config_of(small_world, tmp_path, *words, "evaluation.optimize=format_valid"))


def test_the_held_out_loss_is_a_number(small_world: SmallWorld, tmp_path: Path) -> None:
    words = ("evaluation.every=1", "evaluation.metrics=[]", "runner.steps=1", "runner.liveness=false")
    few, all_of_them = (
        rows(run(config_of(small_world, tmp_path / str(packs), *words, f"evaluation.loss_packs={packs}")).folder
             / "metrics.jsonl")[0]["eval/loss"]
        for packs in (1, 1000)
    )  # fmt: skip
    assert math.isfinite(few)
    assert math.isfinite(all_of_them)
    assert few != all_of_them


def test_a_best_whose_checkpoint_could_not_be_written_leaves_the_best_before_it(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Step 2 measures best and the disk is full then; steps 3 and 4 are written again and push nothing out."""
    losses = iter([3.0, 2.0, 4.0, 5.0])
    monkeypatch.setattr("arcvideo.validation.loss.HeldOutLoss.of", lambda self, model: next(losses))
    written = checkpoint._write_share

    def full_at_2(folder: Path, share: checkpoint.Share) -> Any:
        if share.step == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        return written(folder, share)

    monkeypatch.setattr(checkpoint, "_write_share", full_at_2)
    words = ("evaluation.every=1", "evaluation.metrics=[]", "evaluation.best=true", "runner.steps=4",
             "runner.keep_last=1", "runner.save_every=1", "runner.save_failures=1",
             "runner.liveness=false")  # fmt: skip
    done = run(config_of(small_world, tmp_path, *words))
    said = capfd.readouterr().err
    assert "after step 1 measured best and are taken (evaluation.best); those after step 2 were better" in said
    manifest = read_manifest(done.folder)
    assert (manifest.metrics["eval/best_step"], manifest.value("loss")) == (1, 3.0)
    assert {path.name for path in (done.folder / "checkpoints").glob("step-*")} == {"step-1", "step-4"}
    saved = read_checkpoint(done.folder / "checkpoints" / "step-1").tensors("weights")
    out = weights(done.folder / "export")
    assert all(torch.equal(out[name], saved[name]) for name in saved)


KINDS = {
    "lora": ["stage=sft", "lora.rank=4", "lora.alpha=8", "optimizer.lr=0.01"],
    "zero3": ["stage=sft", "engine=zero3", "optimizer.name=adamw", "optimizer.lr=0.01"],
    "grpo": ["stage=grpo", *GRPO, "evaluation.style=think"],
    "grpo_lora": ["stage=grpo", *GRPO, "lora.rank=4", "lora.alpha=8", "evaluation.style=think"],
}


def rewarded(config: RunConfig) -> RunConfig:
    """Weights this fresh earn nothing by the paper's rewards, so the completions' own letters are rewarded."""
    return replace(config, grpo=replace(config.grpo, rewards={OWN_REWARD: 1.0, "mcq_accuracy": 0.0}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_training_is_measured_on_its_way(small_world: SmallWorld, tmp_path: Path, kind: str) -> None:
    words = [*small_world.overrides, *KINDS[kind], "runner.steps=2", "evaluation.items=3", "evaluation.loss_packs=2",
             "evaluation.metrics=[mcq_accuracy,grounding_miou]"]  # fmt: skip
    quiet = run(rewarded(settings(*words, f"run_dir={tmp_path / 'quiet'}", "evaluation.shards=''")))
    told = run(rewarded(settings(*words, f"run_dir={tmp_path / 'told'}", "evaluation.every=1")))
    ours, theirs = (weights(one.folder / "export") for one in (told, quiet))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    measurements = told.folder / "evaluations"
    assert {path.name for path in measurements.glob("step-*")} == {"step-1", "step-2"}
    (finished,) = measurements.glob("held-out-*")
    # The model in memory after the last step says what its export says.
    after, before = (read_answers(folder).answers for folder in (finished, measurements / "step-2"))
    assert len(after) > 3
    assert {key: one.text for key, one in before.items()} == {key: one.text for key, one in after.items()}
    lines = [line for line in rows(told.folder / "metrics.jsonl") if "train/loss" in line]
    assert all("eval/mcq_accuracy" in line for line in lines)
    assert all(("eval/loss" in line) == ("grpo" not in kind) for line in lines)
