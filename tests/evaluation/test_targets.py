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
