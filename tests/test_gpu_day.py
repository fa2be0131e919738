"""`make gpu-day` is known to work before there is a GPU: it runs whole at toy size on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_day
from benchmarks.gpu_day import DEADLINES, TARGETS, page, run_step


def line(step: str, **words: object) -> dict[str, object]:
    return {"step": step, "seconds": 1.0, "figures": {}, "predicted": {}, "skipped": "", "failed": ""} | words


def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_day.main([]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: no GPU: ")
    assert "SIZE=toy" in said


def test_the_page_says_what_holds_what_is_missed_and_what_nobody_measured() -> None:
    lines = [
        line("sft", figures={"best_mfu": 0.53, "peak_over_trace": 1.2, "full_gib": 15.0}, predicted={"full_gib": 14.7}),
        line("rollouts", failed="took more than 360 s"),
        line("ranks", skipped="one GPU"),
    ]
    text = page(lines, size="full", where="a machine")
    verdicts = {row.split(" | ")[0][2:]: row.split(" | ")[-1][:-2] for row in text.splitlines() if row.startswith("| ")}
    names = {target.figure: target.name for target in TARGETS}
    assert verdicts[names["best_mfu"]] == "held"
    assert verdicts[names["peak_over_trace"]] == "missed"
    assert verdicts[names["share_64"]] == "unmeasured"
    assert "| full_gib | 15 | 14.7 |" in text
    assert "## rollouts (1 s): FAILED: took more than 360 s" in text
    assert "## ranks (1 s): skipped: one GPU" in text


def test_every_target_asks_a_step_and_the_deadlines_fit_the_budget() -> None:
    assert len(DEADLINES) == 11
    assert {target.step for target in TARGETS} <= set(DEADLINES)
    # Ample each, cut to what is left: together they may exceed the budget by the tests and little more.
    assert sum(DEADLINES.values()) <= gpu_day.BUDGET + DEADLINES["tests"]


@pytest.mark.slow
def test_a_step_that_fails_or_hangs_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_day, "BUILD", tmp_path)
    assert "KeyError" in run_step("no such step", size="toy", deadline=120)["failed"]
    assert run_step("environment", size="toy", deadline=0.2)["failed"] == "took more than 0 s"


@pytest.mark.slow
def test_the_whole_day_at_toy_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_day, "BUILD", tmp_path)
    monkeypatch.setattr(gpu_day, "DEADLINES", dict.fromkeys(DEADLINES, 600))  # a busy machine is not a broken step
    monkeypatch.setattr(gpu_day, "BUDGET", 6600)
    assert gpu_day.main(["--size", "toy"]) == 0, capsys.readouterr().out
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines() if text.startswith("{")]
    assert [one["step"] for one in lines] == list(DEADLINES)
    figures = {one["step"]: one["figures"] for one in lines}
    assert figures["state"]["resume_equal"] == 1
    assert figures["determinism"]["strict_equal"] == 1
    assert figures["rollouts"]["static_equal_8"] == 1.0
    assert figures["grpo"]["mean_logprob_gap"] < 1e-4
    assert figures["grpo"]["speedup"] > 0
    for name in ("sft", "vit", "backends", "ceilings"):
        assert not [value for value in figures[name].values() if isinstance(value, str)], name
    assert (tmp_path / "page.md").read_text().startswith("# GPU day (toy)")
