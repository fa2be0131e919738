"""What a person sees of a run on several ranks: one voice, one error, the exit status of who failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SmallWorld
from tests.spawned import finished

ROOT = Path(__file__).resolve().parents[1]
TWO = ["--standalone", "--nproc_per_node", "2"]


def start(*words: str) -> subprocess.CompletedProcess[str]:
    return finished([sys.executable, "-m", *words], cwd=ROOT, seconds=900)


def test_the_first_failing_rank_says_its_error_once_and_the_others_are_silent(tmp_path: Path) -> None:
    done = start("torch.distributed.run", *TWO, "-m", "tests.runner.failing", str(tmp_path))
    assert done.returncode != 0
    assert done.stdout.splitlines() == ["rank 0 is here"]
    (line,) = [line for line in done.stderr.splitlines() if "on fire" in line]
    log = tmp_path / "logs" / "rank_1.log"
    assert line == f"error on rank 1: RuntimeError: the disk of rank 1 is on fire ... (traceback in {log})"
    assert log.read_text().startswith("rank 1 is here\nTraceback")
    assert "rank 0 is here" not in log.read_text()


@pytest.mark.slow
def test_a_stage_that_fails_on_two_ranks_is_one_line_and_status_1(small_world: SmallWorld, tmp_path: Path) -> None:
    words = ["stage=sft", *small_world.overrides, f"run_dir={tmp_path}", "engine=zero2", "optimizer.name=adamw"]
    done = start("arcvideo.torchrun", *TWO, *words, "data.packs_per_step=2", "data.token_budget=8")
    assert done.returncode == 1
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    assert len(errors) == 1, done.stderr
    assert "data.token_budget" in errors[0]
    assert "Traceback" not in done.stderr
    assert errors[0].count("traceback in") == 1


def test_wrong_settings_are_said_once(tmp_path: Path) -> None:
    done = start("arcvideo.torchrun", *TWO, "stage=sft", "runner.stpes=3")
    assert done.returncode == 1
    assert done.stderr.count("runner.stpes: no such setting") == 1


def test_an_option_that_torchrun_refuses_is_one_line() -> None:
    done = start("arcvideo.torchrun", "--nproc_per_node", "banana", "stage=sft")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == ["error: torchrun: Unsupported nproc_per_node value: banana"]


@pytest.mark.slow
def test_two_ranks_train_and_only_the_first_speaks(small_world: SmallWorld, tmp_path: Path) -> None:
    words = ["stage=sft", *small_world.overrides, f"run_dir={tmp_path}", "engine=zero2", "optimizer.name=adamw"]
    done = start("arcvideo.torchrun", *TWO, *words, "data.packs_per_step=2", "evaluation.shards=''")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("peak learning rate") == 1
    assert (tmp_path / "sft" / "logs" / "rank_1.log").exists()
