from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from arcvideo.evaluation.predictions import Prediction, write_predictions
from arcvideo.evaluation.targets import Comparison, Target, compare, judge


def measured(run_dir: Path, stage: str, scores: dict[str, float], *, truth: str = "red") -> None:
    rows = [
        Prediction(metric="summary_f1", key=key, question="?", truth=truth, prediction="red", score=score)
        for key, score in scores.items()
    ]
    write_predictions(run_dir / stage / "predictions.jsonl", predictions=rows)


def test_a_comparison_is_the_paired_difference_of_two_stages_on_the_same_items(tmp_path: Path) -> None:
    measured(tmp_path, "sft", {"a": 0.5, "b": 1.0})
    measured(tmp_path, "dpo", {"b": 0.75, "a": 0.0})
    (row,) = compare([Comparison(metric="summary_f1", stage="sft", minus="dpo")], run_dir=tmp_path)
    assert row == {"metric": "summary_f1", "stage": "sft", "minus": "dpo", "mean": 0.375, "low": 0.25, "high": 0.5}
    measured(tmp_path, "dpo", {"a": 0.25})
    with pytest.raises(ValueError, match="summary_f1: sft and dpo were measured on different items"):
        compare([Comparison(metric="summary_f1", stage="sft", minus="dpo")], run_dir=tmp_path)
    measured(tmp_path, "dpo", {"a": 0.25, "b": 0.5}, truth="blue")  # another set, whose clips have the same keys
    with pytest.raises(ValueError, match="summary_f1: sft and dpo were measured on different items"):
        compare([Comparison(metric="summary_f1", stage="sft", minus="dpo")], run_dir=tmp_path)


def test_stages_are_compared_by_rates_and_by_clips(tmp_path: Path) -> None:
    """As the table shows them: edits over words, and items of one clip drawn together."""

    def transcripts(stage: str, edits: list[float]) -> None:
        rows = [
            Prediction(
                metric="transcript_token_error", key=f"clip-{n // 2}/{n}", question="?", truth="", prediction="",
                score=score, weight=20.0,
            )
            for n, score in enumerate(edits)
        ]  # fmt: skip
        write_predictions(tmp_path / stage / "predictions.jsonl", predictions=rows)

    transcripts("sft", [4.0, 0.0] * 20)
    transcripts("grpo", [0.0, 4.0] * 20)
    transcripts("worse", [6.0, 2.0] * 20)
    (even, apart) = compare(
        [Comparison(metric="transcript_token_error", stage=stage, minus="sft") for stage in ("grpo", "worse")],
        run_dir=tmp_path,
    )
    # Twenty clips that agree: at most 1 - 0.025 ** (1 / 20) = 0.168 of all can differ, items drawn alone would spread.
    assert [even["mean"], even["low"], even["high"]] == pytest.approx([0.0, -0.168, 0.168], abs=1e-3)
    assert [apart["mean"], apart["low"], apart["high"]] == pytest.approx([0.1, -0.085, 0.252], abs=1e-3)
    with pytest.raises(ValueError, match="no predictions of summary_f1"):
        compare([Comparison(metric="summary_f1", stage="sft", minus="grpo")], run_dir=tmp_path)


def answered(run_dir: Path, stage: str, scores: Sequence[float], *, metric: str = "mcq_accuracy") -> None:
    """A stage that answered as many items of three words each, with these scores."""
    rows = [
        Prediction(
            metric=metric, key=f"clip-{number}/0", question="?", truth="A", prediction="A", score=score, weight=weight
        )
        for number, score in enumerate(scores)
        for weight in (3.0 if metric == "transcript_token_error" else 1.0,)
    ]
    write_predictions(run_dir / stage / "predictions.jsonl", predictions=rows)


def verdict(run_dir: Path, **wanted: Any) -> bool:
    target = Target(stage="after", **wanted)
    measured = {"after": {target.metric: {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.25, "n": 40.0}}}
    return judge([target], metrics=measured, run_dir=run_dir)[0].met


def test_a_stage_within_a_margin_has_shown_that_it_lost_less_than_that(tmp_path: Path) -> None:
    answered(tmp_path, "before", [1.0] * 20 + [0.0] * 20)
    answered(tmp_path, "after", [0.9] * 20 + [0.0] * 20)  # 0.05 worse, within 0.034 and 0.066 by the bootstrap
    assert not verdict(tmp_path, metric="mcq_accuracy", not_below_stage="before", within=0.04)
    assert verdict(tmp_path, metric="mcq_accuracy", not_below_stage="before", within=0.08)


def test_without_a_margin_a_loss_must_only_not_be_shown(tmp_path: Path) -> None:
    answered(tmp_path, "before", [1.0, 0.0] * 20)
    answered(tmp_path, "after", [0.0, 1.0] * 19 + [0.0, 0.0])
    assert verdict(tmp_path, metric="mcq_accuracy", not_below_stage="before")
    assert not verdict(tmp_path, metric="mcq_accuracy", not_below_stage="before", within=0.05)


def test_of_an_error_less_is_better(tmp_path: Path) -> None:
    answered(tmp_path, "before", [3.0] * 40, metric="transcript_token_error")
    answered(tmp_path, "after", [0.0] * 40, metric="transcript_token_error")
    assert verdict(tmp_path, metric="transcript_token_error", above_stage="before")
    answered(tmp_path, "after", [3.2, 3.4] * 20, metric="transcript_token_error")  # 0.1 a word worse
    assert not verdict(tmp_path, metric="transcript_token_error", not_below_stage="before")
    assert not verdict(tmp_path, metric="transcript_token_error", not_below_stage="before", within=0.05)
    assert verdict(tmp_path, metric="transcript_token_error", not_below_stage="before", within=0.15)


@pytest.mark.parametrize("wanted", [{"within": 0.1}, {"within": 0.0, "not_below_stage": "sft"}])
def test_a_margin_needs_a_stage_and_a_size(wanted: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"within=.* must be above 0 and stand beside not_below_stage"):
        Target(stage="grpo", metric="mcq_accuracy", **wanted)
