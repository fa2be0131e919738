"""The loop: metrics, skipped steps, bad sources, W&B, and the pieces without a framework."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from arcvideo.processes.launcher import launch_variables
from arcvideo.processes.ranks import World
from arcvideo.runner.optimizer import lr_ratio
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import (
    OptimizerSettings,
    RunnerSettings,
    ScheduleSettings,
    engine_problems,
    runner_problems,
)
from arcvideo.runner.trainable import tensor_digest, train_only, trainable_table
from arcvideo.saving.randomness import random_state, restore_random_state, seed_all
from arcvideo.tracking.metrics import MetricsFile, Sums, WandbMirror, merge, read_metrics
from arcvideo.tracking.settings import LoggerSettings
from arcvideo.types import StepData
from tests.runner.job import ROOT, TRAIN, build_engine, train
from tests.runner.tiny import Rows, Tiny, batch, cross_entropy


def runner(folder: Path, *, world: World, source: object, **settings: object) -> Runner:
    return Runner(
        engine=build_engine(world=world), source=source, objective=cross_entropy,  # type: ignore[arg-type]
        settings=RunnerSettings(**({"steps": 4, "log_every": 2} | settings)),  # type: ignore[arg-type]
        schedule=ScheduleSettings(), train=TRAIN, folder=folder, identity="tiny",
    )  # fmt: skip


def test_a_run_writes_one_line_a_step_and_tells_a_person(
    tmp_path: Path, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    result = runner(tmp_path, world=world, source=Rows()).run()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    wanted = {"train/loss", "train/grad_norm", "train/lr", "train/token_accuracy", "speed/tokens_per_second"}
    assert wanted <= lines[0].keys()
    numbers = {key: value for key, value in lines[-1].items() if isinstance(value, int | float)}
    assert result.metrics == {key: value for key, value in numbers.items() if key != "step"}
    printed = capfd.readouterr()
    assert printed.err.count("step ") == 2
    assert printed.out == ""


def test_the_loss_is_a_mean_over_the_targets_of_all_micro_batches(tmp_path: Path, world: World) -> None:
    model, rows = Tiny(), Rows().batches(0).batches
    losses = [cross_entropy(model(**_inputs(row)).logits, row).total for row in rows]
    expected = float(sum(losses).detach() / sum(row.target_weights.sum() for row in rows))  # type: ignore[union-attr]
    runner(tmp_path, world=world, source=Rows(), liveness=False, steps=1).run()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["train/loss"] == pytest.approx(expected, rel=1e-6)


def _inputs(row):
    return {name: getattr(row, name) for name in ("input_ids", "position_ids", "segments", "media", "target_positions")}


def test_a_poisoned_step_is_skipped_and_its_samples_named(
    tmp_path: Path, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    result = runner(tmp_path, world=world, source=Rows(poison=2)).run()
    assert result.skipped == [2]
    assert "step 2 skipped, weights unchanged" in capfd.readouterr().err
    assert read_metrics(tmp_path / "metrics.jsonl")[2]["train/skipped"] == 1


def test_more_skipped_steps_than_the_budget_stop_the_run(tmp_path: Path, world: World) -> None:
    with pytest.raises(ValueError, match=r"runner\.skip_budget=0.*sample-16"):
        runner(tmp_path, world=world, source=Rows(poison=2), skip_budget=0).run()


class Untargeted(Rows):
    def batches(self, step):
        row = batch(0)
        row.target_weights.zero_()
        return StepData(batches=[row])


def test_a_step_without_targets_is_an_error(tmp_path: Path, world: World) -> None:
    with pytest.raises(ValueError, match="no target tokens"):
        runner(tmp_path, world=world, source=Untargeted(), liveness=False).run()


class Lossy(Rows):
    """Counts its rows; nothing of the steps in `gone` can be read."""

    gone: tuple[int, ...] = ()

    def batches(self, step):
        data = super().batches(step)
        count = len(data.batches)
        if step not in self.gone:
            return replace(data, counts={"planned": {"clips": count}, "seen": {"clips": count}})
        counts = {"planned": {"clips": count}, "quarantined": {"clips": count}}
        return StepData(batches=Untargeted().batches(0).batches, counts=counts, lost=("damaged-1", "damaged-2"))


def lossy(*gone: int) -> Lossy:
    source = Lossy()
    source.gone = gone
    return source


@pytest.mark.parametrize("gone", [(0,), (2,), (3,), (1, 2)])
def test_a_step_whose_clips_are_all_quarantined_is_passed_over_and_accounted(
    tmp_path: Path, world: World, capfd: pytest.CaptureFixture[str], gone: tuple[int, ...]
) -> None:
    made = runner(tmp_path, world=world, source=lossy(*gone), skip_budget=0, liveness_scan=4)
    result = made.run()
    assert result.steps == 4
    assert result.skipped == list(gone)
    lost = 8 * len(gone)
    assert result.counts == {
        "planned": {"clips": 32}, "seen": {"clips": 32 - lost}, "quarantined": {"clips": lost}
    }  # fmt: skip
    told = capfd.readouterr().err
    assert all(
        f"step {step} skipped, weights unchanged: all of its clips are quarantined; samples damaged-1, damaged-2"
        in told
        for step in gone
    )
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [line["step"] for line in lines if "train/loss" not in line] == list(gone)
    assert result.metrics["train/loss"] == [line["train/loss"] for line in lines if "train/loss" in line][-1]
    assert made.engine.steps_applied == 4 - len(gone)


def test_a_passed_over_step_leaves_weights_and_optimizer_as_they_were(tmp_path: Path, world: World) -> None:
    ends = []
    for folder, steps in (("passed", 3), ("short", 2)):
        made = runner(tmp_path / folder, world=world, source=lossy(2), steps=3)
        made.run(until=steps)
        ends.append([tensor_digest(made.engine.weights()), tensor_digest(made.engine.optimizer_state())])
    assert ends[0] == ends[1]


def test_counts_pass_over_looking_ahead_and_restarts(tmp_path: Path, world: World) -> None:
    first = runner(tmp_path, world=world, source=lossy(1), liveness_scan=3).run(until=2)
    assert first.counts["planned"] == {"clips": 16}  # what the proof of liveness looked at ahead is not counted
    second = runner(tmp_path, world=world, source=lossy(1), liveness_scan=3).run()
    assert second.counts == {"planned": {"clips": 32}, "seen": {"clips": 24}, "quarantined": {"clips": 8}}
    assert second.skipped == [1]


@pytest.mark.parametrize(("rows", "told"), [([], "4 of the 4 steps"), ([0, 3], "2 of the 4 steps"), ([0, 1, 2, 3], "")])
def test_a_resumed_run_tells_of_which_steps_the_rows_are_gone(
    tmp_path: Path, world: World, capfd: pytest.CaptureFixture[str], rows: list[int], told: str
) -> None:
    train(tmp_path, world=world, steps=6, until=4)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[row] for row in rows))
    capfd.readouterr()
    train(tmp_path, world=world, steps=6)
    assert [row["step"] for row in read_metrics(path)] == [*rows, 4, 5]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("metrics.jsonl")]
    assert len(said) == bool(told)
    assert all(
        f"rows of {told} before are gone, the first is that of step {len(rows) // 2}; put" in line for line in said
    )


@pytest.mark.parametrize("gone", [(), (3,)])
def test_a_run_killed_after_its_last_step_still_tells_its_metrics(
    tmp_path: Path, world: World, gone: tuple[int, ...]
) -> None:
    first = runner(tmp_path, world=world, source=lossy(*gone)).run()
    again = runner(tmp_path, world=world, source=lossy(*gone)).run()  # nothing is left to train
    assert again.resumed_from == 4
    assert again.metrics == first.metrics
    assert again.metrics["train/loss"] > 0


def test_metrics_samples_and_notes_of_a_step_reach_the_log(
    tmp_path: Path, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    class Telling(Rows):
        def batches(self, step):
            return replace(super().batches(step), metrics={"reward": 0.5 + step}, notes=(f"note of {step}",))

    runner(tmp_path, world=world, source=Telling(), steps=2, liveness=False).run()
    assert [line["train/reward"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0.5, 1.5]
    assert capfd.readouterr().err.count("note of ") == 2


def test_wandb_failures_never_stop_training(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def broken(**_: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(wandb, "init", broken)
    made = runner(tmp_path, world=world, source=Rows(), steps=2)
    made.logger = LoggerSettings(wandb="online")
    made.run()
    assert "W&B is off for this run, training goes on" in capfd.readouterr().err


def test_wandb_offline_writes_files_and_keeps_its_id(tmp_path: Path) -> None:
    settings = LoggerSettings(wandb="offline")
    mirror = WandbMirror(settings, folder=tmp_path, name="x", config={"a": 1}, run_id="abc12345")
    mirror.write({"step": 0, "train/loss": 1.0})
    mirror.close()
    assert mirror.run_id == "abc12345"
    assert list(tmp_path.glob("wandb/offline-run-*-abc12345/*.wandb"))


def test_metrics_of_steps_to_be_done_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"ste')
    file = MetricsFile(path, keep_below=2)
    file.write({"step": 2, "train/loss": float("nan")})
    file.close()
    assert read_metrics(path) == [{"step": 0}, {"step": 1}, {"step": 2, "train/loss": "nan"}]


def test_metrics_are_sums_over_counts_of_all_ranks() -> None:
    one, other = Sums(), Sums()
    one.add("accuracy", torch.tensor(1.0), 2)
    one.add("accuracy", 3.0, 4.0)
    other.add("accuracy", 2.0, 2.0)
    other.add("empty", 0.0, 0.0)
    assert merge([one.pairs(), other.pairs()]) == {"accuracy": 0.75}


def test_random_states_survive_json() -> None:
    seed_all(7, rank=1)
    state = json.loads(json.dumps(random_state()))
    expected = torch.rand(3)
    seed_all(0, rank=0)
    restore_random_state(state)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_schedules_warm_up_to_the_peak_and_end_at_the_floor(name: str) -> None:
    schedule = ScheduleSettings(name=name, warmup_steps=3, min_ratio=0.2)
    ratios = [lr_ratio(step, schedule=schedule, steps=10) for step in range(10)]
    assert ratios[:4] == [0.25, 0.5, 0.75, 1.0]
    assert ratios[3:] == sorted(ratios[3:], reverse=True)
    assert ratios[-1] == pytest.approx(1.0 if name == "constant" else 0.2)


def test_of_a_run_that_is_not_longer_than_its_warm_up_the_first_half_warms_up() -> None:
    schedule = ScheduleSettings(name="linear", warmup_steps=20, min_ratio=0.0)
    for steps in (1, 4, 20):
        ratios = [lr_ratio(step, schedule=schedule, steps=steps) for step in range(steps)]
        assert ratios.index(1.0) == steps // 2
        assert min(ratios[: steps // 2 + 1]) > 0
    assert lr_ratio(20, schedule=schedule, steps=21) == 1.0


def test_the_table_of_modules_follows_the_parameters() -> None:
    model = Tiny()
    rows = train_only(model, ["llm"])
    assert {row.module for row in rows if row.trained} == {"llm"}
    assert sum(row.parameters for row in rows) == sum(parameter.numel() for parameter in model.parameters())
    model.language_model.norm.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="llm is trained in part"):
        trainable_table(model)


def test_unknown_modules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stage\.train names \['lm'\]"):
        train_only(Tiny(), ["lm"])


def test_launchers_are_recognised() -> None:
    assert launch_variables({}) == {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert launch_variables({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == {}
    # A batch script without srun is one process, however many tasks it asked for.
    assert launch_variables({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"})["WORLD_SIZE"] == "1"
    slurm = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "5"}
    found = launch_variables(slurm | {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["MASTER_ADDR"]) == (
        "3",
        "8",
        "1",
        "10.0.0.1",
    )
    with pytest.raises(ValueError, match="MASTER_ADDR"):
        launch_variables(slurm)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_engine_files_hold_keys_that_can_run(stage: int) -> None:
    keys = yaml.safe_load((ROOT / f"conf/engine/zero{stage}.yaml").read_text())
    assert keys["zero_optimization"]["stage"] == stage
    assert engine_problems(keys) == []


def test_logger_files_fill_the_settings() -> None:
    for path in (ROOT / "conf/logger").glob("*.yaml"):
        LoggerSettings(**yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"engine": {"fp16": {}}}, "engine.fp16"),
        ({"engine": {"zero_optimization": {"stage": 4}}}, "engine.zero_optimization.stage"),
        ({"optimizer": OptimizerSettings(name="sgd")}, "optimizer.name"),
        (
            {"optimizer": OptimizerSettings(name="muon"), "engine": {"zero_optimization": {"stage": 2}}},
            "optimizer.name=muon",
        ),
        ({"optimizer": OptimizerSettings(lr_factors={"lm": 1.0})}, "optimizer.lr_factors"),
        ({"runner": RunnerSettings(precision="fp16")}, "runner.precision"),
        ({"schedule": ScheduleSettings(warmup_steps=-1)}, "schedule.warmup_steps"),
        ({"logger": LoggerSettings(wandb="on")}, "logger.wandb"),
    ],
)  # fmt: skip
def test_settings_that_cannot_run_name_their_key(change: dict[str, object], key: str) -> None:
    settings: dict[str, object] = {
        "runner": RunnerSettings(), "optimizer": OptimizerSettings(), "schedule": ScheduleSettings(),
        "logger": LoggerSettings(), "engine": {},
    }  # fmt: skip
    assert runner_problems(**settings) == []  # type: ignore[arg-type]
    (problem,) = runner_problems(**(settings | change))  # type: ignore[arg-type]
    assert key in problem


def test_a_finished_run_started_again_does_nothing(tmp_path: Path, world: World) -> None:
    first = train(tmp_path, world=world, steps=2)
    assert train(tmp_path, world=world, steps=2) == first
