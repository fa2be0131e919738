"""Mirrors of metrics.jsonl: one protocol, in threads that cost no step, and the real packages where they are there."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from arcvideo.tracking.log import RunLog
from arcvideo.tracking.mirrors import BesideMirror, mlflow_name, numbers, open_mirrors
from arcvideo.tracking.settings import LoggerSettings, logger_problems

CONFIG = {"stage": {"name": "sft"}, "runner": {"steps": 3}, "logger": {"tags": ["a"]}}
ROWS: list[dict[str, Any]] = [
    {"step": step, "train/loss": 1.0 / (step + 1), "time/step": 1.0, "note": "x"} for step in range(4)
]
FIGURES = {"step": 4, "eval/mcq_accuracy[needs:audio]": 0.5, "eval/mcq_accuracy": 0.5, "eval/mcq_accuracy/low": 0.25}


class FileMirror:
    """A logger of somebody else's package."""

    def __init__(
        self, settings: LoggerSettings, *, folder: Path, name: str, config: Mapping[str, Any], start: int
    ) -> None:
        self.file = (folder / "own.jsonl").open("a")
        self.file.write(json.dumps({"name": name, "project": settings.project, "start": start}) + "\n")

    def write(self, values: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(numbers(values) | {"step": values["step"]}) + "\n")

    def close(self, *, exit_code: int) -> None:
        self.file.write(json.dumps({"exit_code": exit_code}) + "\n")
        self.file.close()


class Keeping(FileMirror):
    """A logger that knows what it holds: a run was killed after the third step had come to it."""

    last = 2


class Broken(FileMirror):
    """A logger that fails."""

    def write(self, values: Mapping[str, Any]) -> None:
        raise RuntimeError("no disk")


def written(folder: Path, settings: LoggerSettings, *, start: int = 0, end: int = 2) -> None:
    rows = [*ROWS, FIGURES]
    mirrors = open_mirrors(settings, folder=folder, name="sft-1", config=CONFIG, start=start, past=rows[:start])
    for row in rows[start:end]:
        for mirror in mirrors:
            mirror.write(row)
    for mirror in mirrors:
        mirror.close(exit_code=0)


def test_a_logger_of_another_package_gets_every_step_and_the_end(tmp_path: Path) -> None:
    log = RunLog(
        tmp_path, first=True, start=0, steps=2, every=1, name="sft-1", config=CONFIG, wandb_id=None,
        logger=LoggerSettings(mirrors=[f"{__name__}:FileMirror"], project="p"),
    )  # fmt: skip
    for row in ROWS[:2]:
        log.record({key: value for key, value in row.items() if key != "train/loss"} | {"loss": row["train/loss"]})
    log.close(exit_code=3)
    head, *rows, end = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert head == {"name": "sft-1", "project": "p", "start": 0}
    assert rows == [{"step": 0, "loss": 1.0, "time/step": 1.0}, {"step": 1, "loss": 0.5, "time/step": 1.0}]
    assert end == {"exit_code": 3}


@pytest.mark.parametrize(("start", "steps"), [(1, [3, 4]), (4, [3, 4])], ids=["ahead of the checkpoint", "behind it"])
def test_a_logger_that_knows_what_it_holds_gets_each_step_once_across_a_kill(
    start: int, steps: list[int], tmp_path: Path
) -> None:
    written(tmp_path, LoggerSettings(mirrors=[f"{__name__}:Keeping"]), start=start, end=5)
    lines = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == steps


def test_figures_of_a_stage_that_is_measured_again_reach_a_logger_again(tmp_path: Path) -> None:
    class Full(FileMirror):
        last = 4

    full = BesideMirror(
        "full", lambda: Full(LoggerSettings(), folder=tmp_path, name="n", config={}, start=4), past=ROWS
    )
    full.write(FIGURES)
    full.close(exit_code=0)
    assert '"eval/mcq_accuracy": 0.5' in (tmp_path / "own.jsonl").read_text()


def test_a_logger_that_fails_is_told_once_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, LoggerSettings(mirrors=[f"{__name__}:Broken"]))
    said = capsys.readouterr().err
    assert said.count("is off for this run, training goes on: RuntimeError: no disk") == 1


def test_a_logger_that_hangs_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("arcvideo.tracking.mirrors._PATIENCE", 0.01)
    free = threading.Event()
    mirror = BesideMirror("slow", lambda: free.wait() and FileMirror)  # type: ignore[arg-type, return-value]
    mirror.write(ROWS[0])
    mirror.close(exit_code=0)
    free.set()
    assert "slow is off for this run, training goes on: TimeoutError" in capsys.readouterr().err


def test_what_is_no_logger_is_told_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcvideo.tracking.settings.find_module", lambda name: None)
    (missing,) = logger_problems(LoggerSettings(mirrors=["mlflow"]))
    assert missing == "logger.mirrors=mlflow needs the package mlflow: pip install mlflow"
    (typo,) = logger_problems(LoggerSettings(mirrors=["mlfow"]))
    assert "did you mean 'mlflow'" in typo
    (absent,) = logger_problems(LoggerSettings(mirrors=[f"{__name__}:Nothing"]))
    assert "has no 'Nothing'" in absent
    assert logger_problems(LoggerSettings(mirrors=[f"{__name__}:FileMirror"])) == []


def test_names_for_mlflow_stand_beside_each_other_as_files() -> None:
    names = ["train/kl", "train/rewards/iou/mean", "eval/a", "eval/a/low", "eval/a[needs:audio]", "data.sources.x"]
    assert [mlflow_name(name) for name in names] == [
        "train/kl", "train/rewards.iou.mean", "eval/a", "eval/a.low", "eval/a_needs:audio_", "data.sources.x",
    ]  # fmt: skip


@pytest.mark.slow
def test_mlflow_has_the_settings_and_each_step_once_across_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow")
    folder = tmp_path / "shorts" / "sft"
    folder.mkdir(parents=True)
    settings = LoggerSettings(mirrors=["mlflow"], project="p", tags=["small"])
    written(folder, settings, end=3)
    written(folder, settings, start=2, end=5)
    assert "is off for this run" not in capsys.readouterr().err
    client = mlflow.MlflowClient((folder.parent / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["runner.steps"] == "3"
    assert (run.data.tags["group"], run.data.tags["stage"]) == ("shorts", "sft")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(row.step, row.value) for row in history] == [(row["step"], row["train/loss"]) for row in ROWS]
    figures = {"eval/mcq_accuracy": 0.5, "eval/mcq_accuracy.low": 0.25, "eval/mcq_accuracy_needs:audio_": 0.5}
    assert run.data.metrics.items() >= figures.items()


@pytest.mark.slow
def test_swanlab_writes_files_that_can_be_sent_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("swanlab")
    folder = tmp_path / "shorts" / "sft"
    folder.mkdir(parents=True)
    written(folder, LoggerSettings(mirrors=["swanlab"], project="p"))
    assert "is off for this run" not in capsys.readouterr().err
    files = [path for path in (folder / "swanlog").rglob("*") if path.is_file()]
    assert any(b"train/loss" in path.read_bytes() for path in files)


@pytest.mark.slow
def test_trackio_has_each_step_once_across_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage")
    folder = tmp_path / "shorts" / "sft"
    folder.mkdir(parents=True)
    written(folder, LoggerSettings(mirrors=["trackio"], project="p"), end=3)
    written(folder, LoggerSettings(mirrors=["trackio"], project="p"), start=2, end=5)
    assert "is off for this run" not in capsys.readouterr().err
    assert [row["step"] for row in storage.SQLiteStorage.get_logs("p", "sft-1")] == [0, 1, 2, 3, 4]
