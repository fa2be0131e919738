"""What leaves the run for W&B and TensorBoard, and that neither can hurt it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arcvideo.processes.ranks import World
from arcvideo.tracking.log import RunLog
from arcvideo.tracking.metrics import Artifact, MetricsFile, TensorBoardMirror, read_metrics, record_lineage
from arcvideo.tracking.settings import LoggerSettings
from tests.runner.test_runner import runner
from tests.runner.tiny import Rows

OFFLINE = LoggerSettings(wandb="offline")


def test_a_stage_that_stopped_continues_its_wandb_run(tmp_path: Path, world: World) -> None:
    made = runner(tmp_path, world=world, source=Rows(), steps=2)
    made.logger = OFFLINE
    first = made.run()
    again = runner(tmp_path, world=world, source=Rows(), steps=4)
    again.logger = OFFLINE
    second = again.run()
    assert second.resumed_from == 2
    assert first.wandb_id == second.wandb_id
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{first.wandb_id}"))) >= 1


def test_what_a_stage_read_and_made_is_in_its_offline_run(tmp_path: Path) -> None:
    export, parent = tmp_path / "sft" / "export", tmp_path / "pretrain" / "export"
    export.mkdir(parents=True)
    parent.mkdir(parents=True)
    record_lineage(
        Artifact(name="sft", kind="model", identity="a" * 64, path=export),
        used=[
            Artifact(name="pretrain", kind="model", identity="b" * 64, path=parent),
            Artifact(name="data", kind="dataset", identity="c" * 64),
        ],
        settings=OFFLINE,
        folder=export.parent,
        run_id="lineage0",
    )
    (file,) = export.parent.glob("wandb/offline-run-*-lineage0/*.wandb")
    content = file.read_bytes()
    for word in (b"pretrain", b"dataset", b"a" * 64, b"b" * 64, b"c" * 64, str(parent).encode()):
        assert word in content


def test_a_failing_lineage_is_said_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def broken(**_: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(wandb, "init", broken)
    made = Artifact(name="sft", kind="model", identity="a", path=tmp_path)
    record_lineage(made, used=[], settings=OFFLINE, folder=tmp_path, run_id="broken00")
    assert capfd.readouterr().err == "W&B does not know this stage's lineage: RuntimeError: no network\n"
    # It is not tried again, and other runs of this process are.
    record_lineage(made, used=[], settings=OFFLINE, folder=tmp_path, run_id="broken00")
    assert capfd.readouterr().err == ""
    record_lineage(made, used=[], settings=OFFLINE, folder=tmp_path, run_id="broken01")
    assert "no network" in capfd.readouterr().err


def test_without_wandb_there_is_no_lineage_to_record(tmp_path: Path) -> None:
    made = Artifact(name="sft", kind="model", identity="a")
    record_lineage(made, used=[], settings=LoggerSettings(), folder=tmp_path, run_id=None)
    assert not list(tmp_path.iterdir())


def test_tensorboard_has_the_numbers_of_every_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    mirror = TensorBoardMirror(LoggerSettings(tensorboard=True), folder=tmp_path, start=0)
    for step in range(3):
        mirror.write({"step": step, "train/loss": 3.0 - step, "data/packs": "words are left out"})
    mirror.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert events.Tags()["scalars"] == ["train/loss"]


def test_tensorboard_has_what_a_killed_run_did(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    mirror = TensorBoardMirror(LoggerSettings(tensorboard=True), folder=tmp_path, start=0)
    for step in range(3):
        mirror.write({"step": step, "train/loss": 3.0 - step})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()  # nobody has closed it
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2]
    mirror.close()


def test_a_tensorboard_that_fails_switches_itself_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    mirror = TensorBoardMirror(LoggerSettings(tensorboard=True), folder=tmp_path, start=0)

    def broken(*_: object) -> None:
        raise OSError("disk full")

    mirror._writer.add_scalar = broken
    mirror.write({"step": 0, "train/loss": 1.0})
    mirror.write({"step": 1, "train/loss": 1.0})
    mirror.close()
    assert capfd.readouterr().err == "TensorBoard is off for this run: OSError: disk full\n"


def test_rollouts_become_a_wandb_table_and_stay_out_of_the_numbers(tmp_path: Path) -> None:
    rows = [
        {
            "key": "a/0",
            "completion": "<answer>0 - 1</answer>",
            "span": (0.0, 1.0),
            "rewards": {"iou": 0.5},
            "reward": 0.5,
        },
        {"key": "a/0", "completion": "no", "span": None, "rewards": {}, "reward": 0.0, "notes": {"iou": "no range"}},
    ]
    line = {"train/tokens": 1, "train/loss": 0.1, "train/lr": 0.1, "train/grad_norm": 1.0, "time/step": 1.0,
            "time/data": 0.0, "memory/gib": 0.0}  # fmt: skip
    log = RunLog(tmp_path, first=True, start=0, steps=3, every=3, logger=OFFLINE, name="grpo", config={}, wandb_id=None)
    for step in range(2):
        log.record({"step": step} | line, rollouts=rows)
    log.close(exit_code=0)
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/rollouts_0_*.json")  # once every three steps
    shown = json.loads(table.read_text())
    assert shown["columns"] == ["key", "completion", "span", "rewards", "reward", "notes"]
    assert shown["data"][0] == ["a/0", "<answer>0 - 1</answer>", "[0.0, 1.0]", '{"iou": 0.5}', 0.5, None]
    assert shown["data"][1][-1] == '{"iou": "no range"}'
    assert [set(row) for row in read_metrics(tmp_path / "metrics.jsonl")] == [{"step", *line}] * 2


def test_a_folder_that_vanishes_during_the_run_is_told_and_no_row_goes_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    file = MetricsFile(folder / "metrics.jsonl", keep_below=1)
    file.write({"step": 1, "train/loss": 1.0})
    folder.rename(tmp_path / "away")
    folder.mkdir()  # what an unmounted folder leaves
    with pytest.raises(FileNotFoundError, match="was unmounted, moved or removed; put it back"):
        file.write({"step": 2, "train/loss": 1.0})
    folder.rmdir()
    (tmp_path / "away").rename(folder)
    file.write({"step": 2, "train/loss": 1.0})
    file.close()
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2]
