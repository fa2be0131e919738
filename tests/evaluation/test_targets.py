from __future__ import annotations

from pathlib import Path

import pytest

from arcvideo.evaluation.predictions import Prediction, write_predictions
from arcvideo.evaluation.targets import Comparison, compare


def measured(run_dir: Path, stage: str, scores: dict[str, float]) -> None:
    rows = [
        Prediction(metric="summary_f1", key=key, question="?", truth="red", prediction="red", score=score)
        for key, score in scores.items()
    ]
    write_predictions(run_dir / stage / "predictions.jsonl", predictions=rows)


def test_a_comparison_is_the_paired_difference_of_two_stages_on_the_same_items(tmp_path: Path) -> None:
    measured(tmp_path, "sft", {"a": 0.5, "b": 1.0})
    measured(tmp_path, "dpo", {"b": 0.75, "a": 0.25})
    (row,) = compare([Comparison(metric="summary_f1", stage="sft", minus="dpo")], run_dir=tmp_path)
    assert row == {"metric": "summary_f1", "stage": "sft", "minus": "dpo", "mean": 0.25, "low": 0.25, "high": 0.25}
    measured(tmp_path, "dpo", {"a": 0.25})
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
    assert (even["mean"], even["low"], even["high"]) == (0.0, 0.0, 0.0)
    assert [apart["mean"], apart["low"], apart["high"]] == pytest.approx([0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match="no predictions of summary_f1"):
        compare([Comparison(metric="summary_f1", stage="sft", minus="grpo")], run_dir=tmp_path)
