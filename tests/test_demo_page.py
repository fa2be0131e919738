"""README and docs show what the recorded runs of the demo measured, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo_page
from benchmarks.demo import DEMO, name_of


def record(value: float, *, low: float = 0.01, seed: int = 0) -> dict[str, Any]:
    cell = {"value": value, "low": value, "high": value, "chance": 0.25, "n": 300}
    difference = {"metric": "mcq_accuracy", "stage": "grpo", "minus": "sft", "mean": value, "low": low, "high": 0.9}
    target = {
        "stage": "sft",
        "metric": "mcq_accuracy",
        "at_least": 0.6,
        "met": value >= 0.6,
        "reason": f"{value:.3f} >= 0.6",
    }
    summary = {
        "stages": {"sft": {"mcq_accuracy": cell}, "grpo": {}},
        "seconds": {"data": 30.0, "sft": 60.0 * value},
        "differences": [difference],
        "targets": [target],
    }
    return {
        "seed": seed,
        "name": f"seed-{seed}-avx2",
        "shares": None,
        "capability": "avx2",
        "threads": 1,
        "machine": {"cpu": "a CPU", "cores": 2},
        "summary": summary,
    }


RUNS = [record(0.5, low=-0.1), record(0.7, seed=1), record(0.9, seed=2)]


def test_pages_equal_what_the_recorded_runs_give() -> None:
    runs = demo_page.records()
    stale = [
        page.name
        for page in demo_page.pages()
        if demo_page.filled_in(page.read_text(encoding="utf-8"), runs=runs) != page.read_text(encoding="utf-8")
    ]
    assert stale == [], "python -m benchmarks.demo_page"


def test_every_recorded_run_is_named_by_its_seed_and_capability() -> None:
    for path in DEMO.glob("*.json"):
        run = json.loads(path.read_text())
        assert path.stem == name_of(run["seed"], capability=run["capability"], shared=run["shares"] is not None)
        assert run["shares"] is None or (DEMO / f"{run['shares']}.json").exists()
        assert run["threads"] >= 1
        assert run["machine"]["cpu"]


def test_a_cell_is_the_median_and_the_range_of_the_runs() -> None:
    assert "| multiple choice (four options) | 0.25 |  |  | 0.70 (0.50 to 0.90) |  |  |  |" in demo_page.table(RUNS)


def test_a_difference_says_in_how_many_runs_its_interval_leaves_zero() -> None:
    # 0.7 -+ 4.30 * 0.2 / sqrt(3)
    line = "| +0.700 (+0.500 to +0.900) | +0.700 [+0.203, +1.197] | 2 of 3 | 0 of 3 |"
    assert line in demo_page.differences(RUNS)


def test_a_stage_that_was_taken_from_another_run_is_not_counted_again() -> None:
    shared = {**record(0.1, seed=3), "shares": "seed-0-avx2"}
    assert demo_page.stage_table([*RUNS, shared], stage="sft") == demo_page.stage_table(RUNS, stage="sft")
    assert "+0.600 (+0.100 to +0.900)" in demo_page.differences([*RUNS, shared])
    assert "| at_least 0.6 | 2 of 3 | 0.500 |" in demo_page.targets([*RUNS, shared])
    assert "3 of them made clips, base weights and all six stages" in demo_page.about([*RUNS, shared])


def test_missed_targets_are_counted() -> None:
    assert "| at_least 0.6 | 2 of 3 | 0.500 |" in demo_page.targets(RUNS)


def test_the_nearest_run_is_the_one_with_the_worse_end_of_its_interval() -> None:
    def row(metric: str, reason: str) -> dict[str, Any]:
        return {
            "stage": "grpo",
            "metric": metric,
            "not_below_stage": "sft",
            "within": 0.1,
            "met": True,
            "reason": reason,
        }

    reasons = (
        "minus sft: +0.01 [-0.02, +0.05], at most 0.1 worse",
        "minus sft: +0.02 [-0.04, +0.03], at most 0.1 worse",
    )
    for metric, nearest in (("mcq_accuracy", "+0.040 worse"), ("transcript_token_error", "+0.050 worse")):
        runs = [{"shares": None, "summary": {"targets": [row(metric, reason)]}} for reason in reasons]
        assert demo_page.targets(runs).splitlines()[-1].endswith(f"| 2 of 2 | {nearest} |")


def test_only_the_text_between_the_marks_is_written() -> None:
    text = "before 0.1\n<!-- demo sft -->\nold 0.2\n<!-- end -->\nafter 0.3\n"
    new = demo_page.filled_in(text, runs=RUNS)
    assert new.startswith("before 0.1\n<!-- demo sft -->\n")
    assert new.endswith("<!-- end -->\nafter 0.3\n")
    assert "old" not in new
    assert demo_page.filled_in(new, runs=RUNS) == new
    with pytest.raises(ValueError, match="<!-- demo sftt --> is unknown"):
        demo_page.filled_in(text.replace("sft", "sftt"), runs=RUNS)


def test_without_runs_there_is_nothing_to_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no recorded run"):
        demo_page.records(tmp_path)
