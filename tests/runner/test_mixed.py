"""Ranks whose samples have other modalities neither wait for each other nor change the gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runner.job import run_ranks
from tests.runner.mixed import Schedule, drawn, furthest, plain_gradients

WORST: Schedule = [[["text"], ["text"]], [["both", "video"], ["audio"]]]
"""One rank never sees media."""
SECONDS = 900
"""A hang ends the test: `run_ranks` kills its own processes."""


def check(schedules: list[tuple[int, Schedule]], *, ranks: int, root: Path) -> None:
    """Run (stage, schedule) pairs: no collective in a tower, equal ones elsewhere, the gradients of torch."""
    files = [root / f"{number}.safetensors" for number in range(len(schedules))]
    tasks = [
        {"do": "tests.runner.mixed:mixed_step", "stage": stage, "schedule": schedule, "gradients": str(file)}
        for (stage, schedule), file in zip(schedules, files, strict=True)
    ]
    results = run_ranks(tasks, ranks=ranks, seconds=SECONDS)
    for (stage, schedule), file, result in zip(schedules, files, results, strict=True):
        case = f"ZeRO {stage}, {schedule}"
        assert result["applied"], case
        rows = len(schedule[0])
        for counts in result["counts"]:
            assert set(counts["towers"]) <= {0}, f"{case}: a frozen tower issued collectives"
            assert len(counts["merger"]) == len(counts["audio"]) == rows, f"{case}: a projector was not called once"
        assert len({tuple(counts["rows"]) for counts in result["counts"]}) == 1, f"{case}: unequal collectives"
        gap, name = furthest(load_file(file), plain_gradients(schedule))
        assert gap < 1e-5, f"{case}: the gradient of {name} is off by {gap:.1e}"


@pytest.mark.slow
def test_two_ranks_with_random_modalities_get_the_gradients_of_one_process(tmp_path: Path) -> None:
    cases = [(stage, WORST) for stage in range(4)]
    cases += [(stage, drawn(seed, ranks=2)) for seed, stage in enumerate((0, 1, 2, 3, 3))]
    check(cases, ranks=2, root=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_many_random_schedules_of_modalities_never_hang(tmp_path: Path, ranks: int, stage: int) -> None:
    cases = [(stage, drawn(seed, ranks=ranks)) for seed in range(100 * ranks, 100 * ranks + 12)]
    check(cases, ranks=ranks, root=tmp_path)
