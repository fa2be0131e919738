"""Scores from answers alone, on a journal written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arcvideo.evaluation.answers import Answer
from arcvideo.measuring.folder import Journal, Lost, open_measurement, read_answers
from arcvideo.measuring.scores import score_folder

CHOICE = {"letter": "A", "options": ["x", "y"]}


def said(key: str, number: int, text: str, **changes: Any) -> Answer:
    known = {"task": "mcq", "truth": CHOICE, "tags": ("t",), "seconds": 5.0} | changes
    return Answer(key=key, number=number, clip=key.split("/")[0], question="?", reference="A", text=text, **known)


def measured(folder: Path) -> Path:
    open_measurement(folder, origin={"questions": "q"}, facts={"bench": "shards"})
    span = {"task": "grounding", "truth": {"span": [2.0, 5.0]}}
    with Journal(folder, rank=0) as journal:
        journal.add([said("a/0", 0, "A"), said("a/0", 0, "B", arm="no_sound"), said("a/0", 0, "A", arm="no_picture")])
        journal.add([said("b/0", 1, "B\u2028\ud800"), said("c/0", 2, "00:00:02 - 00:00:09", **span)])
        journal.add([said("d/0", 3, "nobody knows", tags=())])
        journal.lose([Lost(key="e/0", reason="no_media", detail="gone")])
    return folder


def test_what_cannot_be_read_is_wrong_and_times_beyond_the_clip_are_cut_and_counted(tmp_path: Path) -> None:
    scores = score_folder(measured(tmp_path / "m"), bootstrap=20)
    assert scores["metrics"]["mcq_accuracy"]["value"] == pytest.approx(1 / 3)
    assert scores["metrics"]["grounding_miou"]["value"] == scores["metrics"]["grounding_r1_70"]["value"] == 1.0
    assert scores["beyond_the_clip"] == {"count": 1, "keys": ["c/0"]}
    assert (scores["questions"], scores["asked"], scores["not_asked"]) == (5, 4, {"no_media": 1})
    unread = [json.loads(line)["key"] for line in (tmp_path / "m" / "unread.jsonl").open()]
    assert "d/0" in unread
    assert scores["unread"]["count"] == len(unread)
    assert scores["tags"]["t"]["mcq_accuracy"]["n"] == 2
    assert scores["needs"] == {"needs:audio": 1}


def test_answers_of_all_ranks_come_in_the_order_of_the_questions_and_half_lines_do_not_count(tmp_path: Path) -> None:
    folder = measured(tmp_path / "m")
    with Journal(folder, rank=10) as journal:
        journal.add([said("aa/0", -1, "A")])
    with (folder / "answers-10.jsonl").open("a") as file:
        file.write('{"key": "zz/0", "te')
    assert [key for arm, key in read_answers(folder).answers if arm == "full"] == ["aa/0", "a/0", "b/0", "c/0", "d/0"]
    with Journal(folder, rank=10) as journal:
        journal.add([said("z/0", 9, "A")])
    assert [key for _, key in read_answers(folder).answers][-1] == "z/0"


def test_a_folder_is_continued_by_the_same_and_refused_to_another_measurement(tmp_path: Path) -> None:
    folder = measured(tmp_path / "m")
    assert open_measurement(folder, origin={"questions": "q"}, facts={})["bench"] == "shards"
    with pytest.raises(ValueError, match=r"questions .*give another name="):
        open_measurement(folder, origin={"questions": "r"}, facts={})
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and no measurement"):
        open_measurement(tmp_path / "own", origin={}, facts={})
