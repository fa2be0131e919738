"""Gates between stages: refused before a run when they could never open, judged on what stages left on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arcvideo.evaluation.gates import Measured, gate_table, judge_gates, plan_gates
from arcvideo.evaluation.predictions import Prediction, write_predictions
from arcvideo.evaluation.targets import Target

STAGES = {
    "pretrain": Measured(parent="", metrics=["mcq_accuracy"]),
    "sft": Measured(parent="pretrain", metrics=["mcq_accuracy", "grounding_miou"]),
    "side": Measured(parent="sft", metrics=[]),
    "grpo": Measured(parent="sft", metrics=["mcq_accuracy", "grounding_miou"]),
}


def gate(**fields: Any) -> Target:
    return Target(**({"stage": "grpo", "metric": "mcq_accuracy"} | fields))


def test_parent_is_the_stage_that_a_stage_starts_from() -> None:
    planned = plan_gates([gate(not_below_stage="parent", within=0.02), gate(above_stage="pretrain")], stages=STAGES)
    assert [one.not_below_stage for one in planned["grpo"]] == ["sft", None]
    assert [one.above_stage for one in planned["grpo"]] == [None, "pretrain"]
    assert list(planned) == ["grpo"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"stage": "dpo"}, r"gates\[0\]\.stage=dpo: no such stage; the recipe has pretrain, sft"),
        ({"stage": "pretrain", "above_stage": "parent"}, "starts from weights that no stage of the recipe measured"),
        ({"stage": "sft", "not_below_stage": "grpo"}, "must be a stage that runs before sft: pretrain, or parent"),
        ({"stage": "side"}, "side does not measure mcq_accuracy, so the gate could never open"),
        ({"metric": "grounding_miou", "above_stage": "pretrain"}, "pretrain does not measure grounding_miou"),
        ({"above_metric": "summary_f1"}, "grpo does not measure summary_f1"),
    ],
)
def test_a_gate_that_could_never_open_is_refused_before_anything_runs(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        plan_gates([gate(**fields)], stages=STAGES)


def test_bounds_for_sure_need_a_bound() -> None:
    with pytest.raises(ValueError, match="surely stands beside at_least or at_most"):
        gate(surely=True)


def answered(run_dir: Path, stage: str, scores: list[float], *, first: int = 0) -> None:
    """Two questions about each clip."""
    rows = [
        Prediction(
            metric="mcq_accuracy", key=f"clip-{first + number // 2:03}/{number % 2}", question="?", truth="A",
            prediction="A" if score else "B", score=score,
        )
        for number, score in enumerate(scores)
    ]  # fmt: skip
    write_predictions(run_dir / stage / "predictions.jsonl", predictions=rows)


FIGURES = {"grpo": {"mcq_accuracy": {"value": 0.7, "low": 0.6, "high": 0.8, "chance": 0.25, "n": 80.0}}}


def is_open(run_dir: Path, **fields: Any) -> tuple[bool, str]:
    planned = plan_gates([gate(**fields)], stages=STAGES)["grpo"]
    (verdict,) = judge_gates(planned, metrics=FIGURES, run_dir=run_dir)
    return verdict.met, verdict.reason


def test_what_must_be_reached_may_hold_for_the_value_or_for_the_interval(tmp_path: Path) -> None:
    assert is_open(tmp_path, at_least=0.65) == (True, "0.700 >= 0.65")
    assert is_open(tmp_path, at_least=0.65, surely=True) == (False, "low 0.600 >= 0.65")
    assert is_open(tmp_path, at_most=0.75) == (True, "0.700 <= 0.75")
    assert is_open(tmp_path, at_most=0.75, surely=True) == (False, "high 0.800 <= 0.75")


def test_what_must_not_be_lost_is_compared_with_the_parent_clip_by_clip(tmp_path: Path) -> None:
    answered(tmp_path, "sft", [1.0, 1.0] * 30 + [0.0, 0.0] * 10)
    answered(tmp_path, "grpo", [1.0, 1.0] * 30 + [0.0, 0.0] * 10)
    # Forty clips that agree cannot show that less than a hundredth is lost on others.
    said = "minus sft: +0.000 [-0.088, +0.088], at most {} worse"
    assert is_open(tmp_path, not_below_stage="parent", within=0.1) == (True, said.format(0.1))
    assert is_open(tmp_path, not_below_stage="parent", within=0.01) == (False, said.format(0.01))
    assert is_open(tmp_path, not_below_stage="parent")[0]
    assert not is_open(tmp_path, above_stage="parent")[0]
    answered(tmp_path, "grpo", [1.0, 1.0] * 20 + [0.0, 0.0] * 20)  # ten clips lost, none won
    assert not is_open(tmp_path, not_below_stage="parent")[0]
    answered(tmp_path, "grpo", [1.0, 1.0] * 40)
    assert is_open(tmp_path, above_stage="parent")[0]


def test_clips_are_drawn_whole_so_that_two_questions_about_one_are_no_more_evidence(tmp_path: Path) -> None:
    """Four of forty clips are lost: were the eight answers independent, the loss would be shown within 0.2."""
    answered(tmp_path, "sft", [1.0, 1.0] * 40)
    answered(tmp_path, "grpo", [1.0, 1.0] * 36 + [0.0, 0.0] * 4)
    met, reason = is_open(tmp_path, not_below_stage="parent", within=0.18)
    assert not met
    answered(tmp_path, "sft", [1.0] * 80)
    answered(tmp_path, "grpo", [0.0, 1.0] * 8 + [1.0] * 64)  # as many answers, on eight clips
    spread, spread_reason = is_open(tmp_path, not_below_stage="parent", within=0.18)
    assert spread, (reason, spread_reason)


def test_stages_measured_on_different_questions_keep_a_gate_shut(tmp_path: Path) -> None:
    answered(tmp_path, "sft", [1.0] * 80)
    answered(tmp_path, "grpo", [1.0] * 80, first=7)
    met, reason = is_open(tmp_path, not_below_stage="parent")
    assert not met
    assert "cannot be judged: mcq_accuracy: grpo and sft were measured on different items" in reason
    met, reason = is_open(tmp_path, not_below_stage="pretrain")
    assert (met, "cannot be judged" in reason) == (False, True)


def test_the_table_says_what_is_wanted_beside_what_was_measured(tmp_path: Path) -> None:
    planned = plan_gates([gate(at_least=0.65), gate(at_least=0.9, surely=True)], stages=STAGES)["grpo"]
    assert gate_table(judge_gates(planned, metrics=FIGURES, run_dir=tmp_path)).splitlines() == [
        "  open  mcq_accuracy  at least 0.65          0.700 >= 0.65",
        "  SHUT  mcq_accuracy  at least 0.9 for sure  low 0.600 >= 0.9",
    ]
