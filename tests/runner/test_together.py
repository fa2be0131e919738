"""Several ranks: refused steps, bad numbers, signals and hangs concern all of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from arcvideo.processes.activity import HANG_EXIT_CODE
from arcvideo.processes.signals import REQUEUE_EXIT_CODE
from arcvideo.saving.checkpoint import CheckpointFolder
from tests.runner.job import curve, ended, run_ranks, start_ranks
from tests.runner.test_resume import wait_for_steps
from tests.runner.tiny import WIDTH

REFUSED = "tests.runner.together:refused_step"
PLAIN = [(stage, "fp32", False) for stage in range(4)]
OFFLOADED = [(2, "bf16", True), (3, "bf16", True)]
REST = [(2, "fp32", True), (3, "fp32", True), (0, "bf16", False), (1, "bf16", False), (2, "bf16", False)]


def refuse(cases: list[tuple[int, str, bool]], *, ranks: int) -> None:
    tasks = [
        {"do": REFUSED, "stage": stage, "precision": precision, "offload": offload}
        for stage, precision, offload in cases
    ]
    for case, result in zip(cases, run_ranks(tasks, ranks=ranks), strict=True):
        assert result == {"kept": True, "alike": True}, case


def test_a_loss_of_infinity_on_one_rank_leaves_every_bit_on_both() -> None:
    refuse([*PLAIN, *OFFLOADED], ranks=2)


@pytest.mark.slow
def test_a_loss_of_infinity_leaves_every_bit_under_every_engine() -> None:
    refuse([*REST, (3, "bf16", False)], ranks=2)
    refuse([*PLAIN, *OFFLOADED], ranks=4)


@pytest.mark.slow
def test_one_rank_reads_all_bits_the_others_half_and_only_the_first_gets_them_back() -> None:
    tasks = [{"do": "tests.runner.together:read_in_bf16", "stage": stage} for stage in (1, 2, 3)]
    for result in run_ranks(tasks, ranks=2):
        assert result == {"alike": True, "kept": [[WIDTH * WIDTH, 8 * WIDTH], [0, 8 * WIDTH]]}


def test_samples_of_another_rank_are_named_and_a_spent_budget_ends_all_ranks(tmp_path: Path) -> None:
    task = {"do": "tests.runner.together:poisoned_run", "stage": 2, "poisons": [[1, 3], [2, 4]]}
    budgets = {"two": 2, "one": 1}
    tasks = [task | {"folder": str(tmp_path / name), "skip_budget": budget} for name, budget in budgets.items()]
    through, stopped = run_ranks(tasks, ranks=2)
    assert through == ""
    lines = [json.loads(line) for line in (tmp_path / "two" / "skipped.jsonl").read_text().splitlines()]
    # Places 3 and 4 of eight rows a step belong to ranks 1 and 0.
    assert [(line["step"], line["samples"]) for line in lines] == [(1, ["sample-11"]), (2, ["sample-20"])]
    assert "2 steps were skipped, more than runner.skip_budget=1" in stopped
    assert "step 2: loss is not finite, samples sample-20" in stopped


@pytest.mark.slow
def test_a_signal_to_one_rank_makes_all_finish_the_step_and_save(tmp_path: Path) -> None:
    task = {"folder": str(tmp_path / "cut"), "steps": 200, "save_every": 0, "pause": 0.05, "liveness": False}
    processes = start_ranks([task | {"stage": 2}], ranks=2, results=tmp_path / "results.json")
    try:
        wait_for_steps(tmp_path / "cut", 3)
        processes[1].send_signal(signal.SIGUSR1)
    finally:
        texts = ended(processes, seconds=600)
    assert [process.returncode for process in processes] == [REQUEUE_EXIT_CODE] * 2, texts
    done = len(curve(tmp_path / "cut"))
    assert 3 <= done < 200
    assert CheckpointFolder(tmp_path / "cut" / "checkpoints").at(done).step == done


@pytest.mark.slow
def test_a_rank_that_hangs_ends_all_with_the_stacks_and_samples_of_each(tmp_path: Path) -> None:
    # Longer than a step takes on a machine with other work.
    task = {"do": "tests.runner.together:hanging_run", "folder": str(tmp_path), "seconds": 25}
    processes = start_ranks([task], ranks=2, results=tmp_path / "results.json")
    texts = ended(processes, seconds=600)
    assert [process.returncode for process in processes] == [HANG_EXIT_CODE] * 2, texts
    told = texts[0]
    assert "rank 0: no progress" in told
    assert "in step 2; samples sample-16, sample-18" in told
    assert "rank 1: no progress" in told
    assert "waiting for the data of step 2" in told
    assert "the_place_that_hangs" in told
