"""Which promises about metrics are met, and that one about what was not measured is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from arcvideo.evaluation.predictions import Prediction, write_predictions
from arcvideo.evaluation.targets import Target, Verdict, judge


def measured(run_dir: Path, stage: str, scores: dict[str, float]) -> None:
    rows = [
        Prediction(metric="summary_f1", key=key, question="?", truth="red", prediction="red", score=score)
        for key, score in scores.items()
    ]
    write_predictions(run_dir / stage / "predictions.jsonl", predictions=rows)


def metric(value: float, *, low: float, high: float, chance: float = 0.25) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "chance": chance, "n": 40}


MEASURED = {
    "sft": {
        "mcq_accuracy": metric(0.6, low=0.5, high=0.7),
        "grounding_miou": metric(0.5, low=0.42, high=0.58),
        "grounding_miou_constant": metric(0.45, low=0.4, high=0.5),
        "speech_qa_audio_zeroed": metric(0.2, low=0.1, high=0.3),
    }
}


def verdict(run_dir: Path, metrics: Mapping[str, Any] = MEASURED, **promise: Any) -> Verdict:
    (found,) = judge([Target(**{"stage": "sft", "metric": "mcq_accuracy"} | promise)], metrics=metrics, run_dir=run_dir)
    return found


@pytest.mark.parametrize(
    ("promise", "met"),
    [
        ({"at_least": 0.6}, True),
        ({"at_least": 0.61}, False),
        ({"at_most": 0.6}, True),
        ({"at_most": 0.59}, False),
        ({"at_least": 0.6, "at_most": 0.59}, False),
        ({"at_least": 0.61, "at_most": 0.7}, False),
        ({"metric": "speech_qa_audio_zeroed", "at_chance": True}, True),
        ({"at_chance": True}, False),
        ({"above_metric": "grounding_miou_constant"}, True),
        ({"metric": "grounding_miou", "above_metric": "grounding_miou_constant"}, False),
    ],
    ids=str,
)
def test_bounds_hold_for_the_value_and_comparisons_for_the_end_of_the_interval(
    tmp_path: Path, promise: dict[str, Any], met: bool
) -> None:
    assert verdict(tmp_path, **promise).met is met


@pytest.mark.parametrize("promise", [{"at_most": 1.0}, {"at_chance": True}, {"not_below_stage": "pretrain"}], ids=str)
@pytest.mark.parametrize("metrics", [{}, {"sft": {}}, {"grpo": MEASURED["sft"]}], ids=str)
def test_what_was_not_measured_is_missed(tmp_path: Path, metrics: dict[str, Any], promise: dict[str, Any]) -> None:
    found = verdict(tmp_path, metrics, **promise)
    assert (found.met, found.reason) == (False, "not measured")


@pytest.mark.parametrize(
    ("minus", "above", "not_below"),
    [
        ([0.0] * 40, True, True),
        ([1.0, 0.0] * 20, False, True),
        ([1.0] * 40, False, False),
    ],
    ids=["better", "like it", "worse"],
)
def test_a_stage_is_compared_with_another_on_their_common_items(
    tmp_path: Path, minus: list[float], above: bool, not_below: bool
) -> None:
    measured(tmp_path, "sft", {f"clip-{place:02}/0": float(place % 2) for place in range(40)})
    measured(tmp_path, "grpo", {f"clip-{place:02}/0": score for place, score in enumerate(minus)})
    metrics = {"sft": {"summary_f1": metric(0.5, low=0.3, high=0.7)}}
    for promise, met in (("above_stage", above), ("not_below_stage", not_below)):
        assert verdict(tmp_path, metrics, metric="summary_f1", **{promise: "grpo"}).met is met, promise
