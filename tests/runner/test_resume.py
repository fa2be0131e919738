"""Interrupted and resumed equals uninterrupted; however the batch is cut, the numbers are the same."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arcvideo.processes.ranks import World
from arcvideo.processes.signals import REQUEUE_EXIT_CODE
from arcvideo.tracking.metrics import read_metrics
from tests.runner.job import ROOT, curve, ended, newest_step, run_ranks, start_ranks, train
from tests.spawned import finished

# bf16 under every stage is a slow test, but for the stage with the most machinery.
CASES = [
    *((stage, "fp32") for stage in range(4)),
    pytest.param(0, "bf16", marks=pytest.mark.slow),
    pytest.param(1, "bf16", marks=pytest.mark.slow),
    pytest.param(2, "bf16", marks=pytest.mark.slow),
    (3, "bf16"),
]


def close(one: dict[str, Any], other: dict[str, Any], *, tolerance: float = 1e-6) -> None:
    for (step, loss, norm), (step2, loss2, norm2) in zip(one["metrics"], other["metrics"], strict=True):
        assert step == step2
        assert (loss, norm) == pytest.approx((loss2, norm2), rel=tolerance)
    assert one["sum"] == pytest.approx(other["sum"], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_resumed_run_has_the_bits_of_a_straight_run(tmp_path: Path, world: World, stage: int, precision: str) -> None:
    straight = train(tmp_path / "straight", world=world, stage=stage, precision=precision)
    train(tmp_path / "cut", world=world, stage=stage, precision=precision, die_at=5)
    assert newest_step(tmp_path / "cut") == 4
    assert train(tmp_path / "cut", world=world, stage=stage, precision=precision) == straight


def test_muon_resumes_exactly(tmp_path: Path, world: World) -> None:
    straight = train(tmp_path / "straight", world=world, optimizer="muon")
    train(tmp_path / "cut", world=world, optimizer="muon", die_at=3)
    assert train(tmp_path / "cut", world=world, optimizer="muon") == straight


def test_steps_skipped_for_nan_survive_a_resume(tmp_path: Path, world: World) -> None:
    straight = train(tmp_path / "straight", world=world, poison=1)
    train(tmp_path / "cut", world=world, poison=1, die_at=4)
    resumed = train(tmp_path / "cut", world=world, poison=1)
    assert resumed["weights"] == straight["weights"]
    assert resumed["optimizer"] == straight["optimizer"]


# ZeRO-1 on several ranks: in the test of four ranks.
TWO_RANK_STAGES = (0, 2, 3)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Straight and interrupted runs on two ranks, done by one job."""
    root = tmp_path_factory.mktemp("two")
    tasks: dict[str, dict[str, Any]] = {}
    for stage in TWO_RANK_STAGES:
        tasks[f"straight{stage}"] = {"folder": str(root / f"straight{stage}"), "stage": stage}
        tasks[f"died{stage}"] = {"folder": str(root / f"cut{stage}"), "stage": stage, "die_at": 5}
        tasks[f"resumed{stage}"] = {"folder": str(root / f"cut{stage}"), "stage": stage}
    tasks["left"] = {"folder": str(root / "left"), "stage": 2, "die_at": 5}
    results = run_ranks(list(tasks.values()), ranks=2)
    return root, dict(zip(tasks, results, strict=True))


@pytest.mark.parametrize("stage", TWO_RANK_STAGES)
def test_two_ranks_resume_exactly(two_ranks: tuple[Path, dict[str, dict[str, Any]]], stage: int) -> None:
    _, results = two_ranks
    assert results[f"died{stage}"] == {}
    assert results[f"resumed{stage}"] == results[f"straight{stage}"]


@pytest.mark.parametrize("stage", TWO_RANK_STAGES)
def test_two_ranks_of_four_rows_equal_one_rank_of_eight(
    two_ranks: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path, world: World, stage: int
) -> None:
    _, results = two_ranks
    close(train(tmp_path / "one", world=world, stage=stage), results[f"straight{stage}"])


@pytest.mark.parametrize("stage", [0, 3])
def test_a_checkpoint_of_two_ranks_continues_on_one_under_any_zero_stage(
    two_ranks: tuple[Path, dict[str, dict[str, Any]]], world: World, tmp_path: Path, stage: int
) -> None:
    root, results = two_ranks
    shutil.copytree(root / "left", tmp_path / "left")
    assert newest_step(tmp_path / "left") == 4
    alone = train(tmp_path / "left", world=world, stage=stage)
    close(alone, results["straight2"])
    assert packs(tmp_path / "left") == packs(root / "straight2")


def test_a_checkpoint_of_one_rank_continues_on_two(tmp_path: Path, world: World) -> None:
    folder = tmp_path / "left"
    straight = train(tmp_path / "straight", world=world)
    train(folder, world=world, die_at=5)
    (grown,) = run_ranks([{"folder": str(folder), "stage": 3}], ranks=2)
    close(grown, straight)
    assert packs(folder) == packs(tmp_path / "straight")


def packs(folder: Path) -> list[str]:
    """Which samples stood together in each step."""
    return [line["data/packs"] for line in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_four_ranks_equal_one(tmp_path: Path, world: World) -> None:
    tasks = [{"folder": str(tmp_path / f"four{stage}"), "stage": stage} for stage in (0, 1, 2, 3)]
    one = train(tmp_path / "one", world=world)
    for result in run_ranks(tasks, ranks=4):
        close(result, one)


@pytest.mark.slow
def test_a_checkpoint_goes_from_four_ranks_to_two_and_to_one(tmp_path: Path, world: World) -> None:
    straight = train(tmp_path / "straight", world=world)
    task = {"folder": str(tmp_path / "moved")}
    run_ranks([task | {"stage": 2, "die_at": 3}], ranks=4)
    run_ranks([task | {"stage": 3, "die_at": 5}], ranks=2)
    assert newest_step(tmp_path / "moved") == 4
    close(train(tmp_path / "moved", world=world, stage=1), straight)
    assert packs(tmp_path / "moved") == packs(tmp_path / "straight")


def wait_for_steps(folder: Path, count: int, *, seconds: float = 900.0) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if len(curve(folder)) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} steps in {seconds} s")


def test_sigterm_saves_after_the_step_and_asks_for_a_requeue(tmp_path: Path, world: World) -> None:
    task = {"folder": str(tmp_path / "cut"), "steps": 40, "save_every": 0, "pause": 0.25}
    (process,) = start_ranks([task], ranks=1, results=tmp_path / "results.json")
    try:
        wait_for_steps(tmp_path / "cut", 3)
        process.send_signal(signal.SIGTERM)
    finally:
        (errors,) = ended([process], seconds=300)
    assert process.returncode == REQUEUE_EXIT_CODE, errors
    assert newest_step(tmp_path / "cut") == len(curve(tmp_path / "cut"))
    resumed = train(tmp_path / "cut", world=world, steps=40, save_every=0)
    assert resumed == train(tmp_path / "straight", world=world, steps=40, save_every=0)


@pytest.mark.slow
def test_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    task = {"do": "tests.runner.together:hanging_run", "folder": str(tmp_path), "seconds": 0}
    (process,) = start_ranks([task], ranks=1, results=tmp_path / "results.json")
    try:
        wait_for_steps(tmp_path, 2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None, "the first signal ended it"
        # Two signals that come before the process runs again are one to it, so the second is repeated.
        limit = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < limit:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
    finally:
        ended([process], seconds=0)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_kill_at_random_instants_never_loses_the_run() -> None:
    command = [sys.executable, "-m", "tests.runner.torture", "--kills", "10"]
    done = finished(command, cwd=ROOT, seconds=600)
    assert done.returncode == 0, done.stderr
    assert "10 kills" in done.stdout
