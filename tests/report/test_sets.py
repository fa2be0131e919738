"""Figures over different questions never share a row: not on the page, not on the terminal, not among the examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcvideo.report.page import write_page
from arcvideo.report.records import StageRecord
from arcvideo.report.samples import held_out_examples
from arcvideo.report.sets import metric_rows, question_sets
from arcvideo.report.summary import print_summary, write_summary
from tests.report.runs import METRIC, finish, make_clips, make_run, write_lines

ASKED = {"metric": "mcq_accuracy", "key": "a/0", "question": "Which?", "truth": "B", "prediction": "B"}
OTHER = {**ASKED, "question": "Which one?", "truth": "C"}
"""A question of another set under the same key."""
MARK = {"score": 1.0, "weight": 1.0}


def test_a_set_is_keys_words_and_truths_in_any_order() -> None:
    more = {**ASKED, "key": "b/0"}
    assert question_sets([ASKED, more]) == question_sets([more, ASKED | {"prediction": "C", "score": 0.0}])
    assert question_sets([ASKED]) != question_sets([OTHER])
    assert question_sets([{"note": "of another make"}]) == {}


def test_a_metric_has_one_row_where_all_stages_were_asked_the_same() -> None:
    measured = {"sft": {"mcq_accuracy": METRIC}, "grpo": {"mcq_accuracy": METRIC}, "dpo": {"mcq_accuracy": METRIC}}
    (row,) = metric_rows(measured, sets={})
    assert (row.title, list(row.cells)) == ("mcq_accuracy", ["sft", "grpo", "dpo"])
    sets = {"sft": {"mcq_accuracy": "1"}, "grpo": {"mcq_accuracy": "2"}, "dpo": {"mcq_accuracy": "1"}}
    rows = metric_rows(measured, sets=sets)
    assert [(row.title, list(row.cells)) for row in rows] == [
        ("mcq_accuracy (questions A)", ["sft", "dpo"]),
        ("mcq_accuracy (questions B)", ["grpo"]),
    ]


def test_page_and_terminal_tell_them_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(make_run(tmp_path), data=make_clips(tmp_path / "clips"))
    write_lines(tmp_path / "sft" / "predictions.jsonl", [ASKED | MARK])
    write_lines(tmp_path / "grpo" / "predictions.jsonl", [OTHER | MARK])
    page = write_page(tmp_path, stages=["sft", "grpo"]).read_text(encoding="utf-8")
    assert page.count("(questions A)") == page.count("(questions B)") == 1
    assert "their figures do not compare" in page
    print_summary(write_summary(tmp_path, stages=["sft", "grpo"], verdicts=[], prepared={}), page=tmp_path)
    said = capsys.readouterr().out
    assert "mcq_accuracy (questions A)" in said
    assert "mcq_accuracy (questions B)" in said
    write_lines(tmp_path / "grpo" / "predictions.jsonl", [ASKED | MARK])
    assert "(questions" not in write_page(tmp_path, stages=["sft", "grpo"]).read_text(encoding="utf-8")


def test_answers_to_different_questions_of_one_key_stand_apart() -> None:
    here, there = ({"evaluation": {"shards": name}} for name in ("here.tar", "there.tar"))

    def stage(name: str, row: dict[str, str], config: dict[str, object]) -> StageRecord:
        return StageRecord(name=name, started={"config": config}, predictions=[row | MARK])

    (same,) = held_out_examples([stage("sft", ASKED, here), stage("grpo", ASKED, here)])
    assert [answer.label for answer in same.questions[0].answers] == ["sft, grpo"]  # both said the same
    (moved,) = held_out_examples([stage("sft", OTHER, there), stage("grpo", ASKED, here)])
    assert [answer.label for answer in moved.questions[0].answers] == ["grpo"]
    (edited,) = held_out_examples([stage("sft", OTHER, here), stage("grpo", ASKED, here)])
    assert [answer.label for answer in edited.questions[0].answers] == ["sft"]
