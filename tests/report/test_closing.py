"""What is said at the end: measured numbers with their intervals, and nothing that was not measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from arcvideo.report.closing import closing_text
from arcvideo.report.page import write_page
from arcvideo.report.summary import print_summary
from tests.report.runs import METRIC, make_run


def test_a_stage_ends_with_its_metrics_and_the_places_of_what_it_leaves(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps({"mcq_accuracy": METRIC}))
    told = closing_text(tmp_path, steps=7, seconds=90, identity="0123456789")
    assert "7 steps in 1.5 minutes (01234567)" in told
    assert re.search(r"mcq_accuracy +0\.610 \[0\.550, 0\.670\]  n 200, chance 0\.25", told)
    for part in (f"{tmp_path}/export", f"{tmp_path}/predictions.jsonl", f"arcvideo report {tmp_path.parent}"):
        assert part in told
    (tmp_path / "evaluation.json").unlink()
    assert "nothing was measured" in closing_text(tmp_path, steps=7, seconds=90, identity="0123456789")


@pytest.mark.parametrize(
    ("targets", "measured", "told", "hidden"),
    [
        ([{"stage": "sft", "metric": "mcq_accuracy", "met": True, "reason": ""}], True, "All targets met", "without"),
        ([], True, "measured without targets", "All targets met"),
        ([], False, "nothing was measured", "All targets met"),
    ],
)
def test_targets_are_met_only_where_there_are_some(
    tmp_path: Path, targets: list[dict[str, object]], measured: bool, told: str, hidden: str
) -> None:
    make_run(tmp_path)
    stages = {"sft": {"mcq_accuracy": METRIC} if measured else {}}
    summary = {"stages": stages, "seconds": {"sft": 60.0}, "targets": targets, "passed": True}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    if not measured:
        for file in tmp_path.glob("*/evaluation.json"):
            file.write_text("{}")
    page = write_page(tmp_path, stages=["sft", "grpo"]).read_text(encoding="utf-8")
    assert told in page
    assert hidden not in page


def test_no_name_of_a_metric_is_cut_in_eighty_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    metrics = dict.fromkeys(("transcript_token_error", "speech_qa_audio_zeroed"), METRIC)
    stages = dict.fromkeys(("audio_warmup", "pretrain", "sft", "cold_start", "grpo", "final_sft"), metrics)
    print_summary({"stages": stages, "seconds": {"a": 1.0}, "targets": []}, page=tmp_path)
    said = capsys.readouterr().out
    for word in (*metrics, *stages):
        assert word in said
    assert said.count("0.61 [0.55, 0.67]") == len(metrics) * len(stages)
    assert max(map(len, said.splitlines())) <= 80 + len(str(tmp_path))
    assert "the recipe sets no targets" in said
