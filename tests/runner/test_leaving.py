"""A rank that is killed, stopped, or slow to write: the others wait for the stated time at most and say for whom."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arcvideo.processes.activity import HANG_EXIT_CODE, LOST_EXIT_CODE
from arcvideo.saving.checkpoint import CheckpointFolder
from tests.runner.job import ended, start_ranks

PATIENCE = 20
"""Seconds of runner.hang_seconds: longer than a step takes on a machine with much other work."""


@contextlib.contextmanager
def two_ranks(folder: Path, do: str, **task: object) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two ranks of a launcher that does nothing for them when one ends."""
    task |= {"do": f"tests.runner.leaving:{do}", "folder": str(folder), "patience": PATIENCE}
    processes = start_ranks([task], ranks=2, results=folder / "results.json")
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def wait_for(there: Callable[[], bool], processes: list[subprocess.Popen[bytes]]) -> None:
    limit = time.monotonic() + 600
    while not there():
        assert all(process.poll() is None for process in processes), processes[0].communicate()[1].decode()
        assert time.monotonic() < limit
        time.sleep(0.02)


def saved(folder: Path) -> bool:
    return CheckpointFolder(folder / "checkpoints").newest() is not None


def line_of(text: str) -> str:
    """The one line about the end among what a rank wrote to the terminal."""
    (line,) = [line for line in text.splitlines() if line.startswith("error")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_with_its_step_and_the_other_ends(tmp_path: Path, victim: int) -> None:
    with two_ranks(tmp_path, "run") as processes:
        wait_for(lambda: saved(tmp_path), processes)
        processes[victim].send_signal(signal.SIGKILL)
        texts = ended(processes, seconds=600)
    other = 1 - victim
    assert [processes[victim].returncode, processes[other].returncode] == [-signal.SIGKILL, LOST_EXIT_CODE]
    line = line_of(texts[other])
    assert line.startswith(f"error on rank {other}: rank {victim} is gone: ")
    assert "step " in line
    assert "start the same command again" in line
    last = json.loads((tmp_path / "logs" / f"rank_{victim}.doing").read_text())
    assert str(last["doing"]) in line
    assert str(last["doing"]) in (tmp_path / "logs" / f"rank_{victim}.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_named_when_the_time_is_over_and_the_other_ends(tmp_path: Path, victim: int) -> None:
    with two_ranks(tmp_path, "run") as processes:
        wait_for(lambda: saved(tmp_path), processes)
        processes[victim].send_signal(signal.SIGSTOP)
        other = processes[1 - victim]
        text = other.communicate(timeout=600)[1].decode()
        assert other.returncode == HANG_EXIT_CODE
        assert processes[victim].poll() is None
    line = line_of(text)
    assert f"rank {victim} is stopped: " in line
    assert "step " in line
    assert f"for {PATIENCE} s (runner.hang_seconds)" in line
    assert f"rank {victim} is stopped: " in (tmp_path / "logs" / f"rank_{victim}.log").read_text()


@pytest.mark.slow
def test_a_rank_that_is_slow_to_write_is_named_with_the_checkpoint(tmp_path: Path) -> None:
    with two_ranks(tmp_path, "run", slow_disk=True) as processes:
        texts = ended(processes, seconds=600)
    assert [process.returncode for process in processes] == [HANG_EXIT_CODE] * 2, texts
    line = line_of(texts[0])
    assert "rank 1 is slow: saving after step 8" in line
    assert "writing its share of checkpoint step-6 beside it" in line
    found = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert found is not None
    assert found.step == 4


@pytest.mark.slow
def test_a_rank_that_is_stopped_outside_the_loop_does_not_hold_the_others(tmp_path: Path) -> None:
    with two_ranks(tmp_path, "export") as processes:
        wait_for((tmp_path / "exporting").exists, processes)
        os.kill(processes[0].pid, signal.SIGSTOP)
        text = processes[1].communicate(timeout=600)[1].decode()
        assert processes[1].returncode == HANG_EXIT_CODE
    line = line_of(text)
    assert line.startswith("error on rank 1: rank 0 is stopped: exporting, for ")
    assert f"waited for {PATIENCE} s (runner.hang_seconds)" in line


@pytest.mark.slow
def test_a_rank_that_works_alone_for_longer_is_waited_for(tmp_path: Path) -> None:
    with two_ranks(tmp_path, "export") as processes:
        wait_for((tmp_path / "exporting").exists, processes)
        with pytest.raises(subprocess.TimeoutExpired):
            processes[1].wait(timeout=PATIENCE + 15)
