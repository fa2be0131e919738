"""Scores from answers alone, on a journal written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arcvideo.evaluation.answers import Answer
from arcvideo.measuring.compare import compare, compare_text, write_comparison
from arcvideo.measuring.folder import Journal, Lost, open_measurement, read_answers, read_card
from arcvideo.measuring.scores import score_folder, table_text

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


def test_what_is_published_of_a_benchmark_stands_beside_ours_with_its_source(tmp_path: Path) -> None:
    open_measurement(tmp_path, origin={}, facts={"bench": "mvbench", "notes": ["a mean of tasks"]})
    with Journal(tmp_path, rank=0) as journal:
        journal.add([said(f"{number}/0", number, "A" if number < 3 else "B") for number in range(4)])
    text = table_text(score_folder(tmp_path, bootstrap=20))
    assert "this measurement         75.0" in text
    assert "ARC-Hunyuan-Video-7B     62.6  thinks  arXiv 2507.20939, table 1" in text
    assert "note: a mean of tasks" in text
    assert "arXiv" not in table_text(score_folder(measured(tmp_path / "own"), bootstrap=20))


def summarised(folder: Path, *, bench: str, text: str) -> Path:
    """A choice and a summary, as a benchmark of that name."""
    open_measurement(folder, origin={"questions": "q"}, facts={"bench": bench})
    summary = {"task": "summary", "truth": {"text": "a red bird"}}
    with Journal(folder, rank=0) as journal:
        journal.add([said("a/0", 0, "A"), said("a/1", 1, text, **summary)])
    return folder


def test_published_tables_stand_beside_both_sides_of_a_comparison(tmp_path: Path) -> None:
    first = summarised(tmp_path / "one", bench="mvbench", text="a red bird")
    second = summarised(tmp_path / "two", bench="mvbench", text="a blue cow")
    scores = score_folder(first, bootstrap=20)
    assert [row["model"] for row in scores["published"]][:2] == ["Qwen2.5-VL-7B", "Qwen2.5-Omni-7B"]
    assert [tuple(row["marks"]) for row in scores["marked"]][:2] == [(29, 22, 49), (18, 4, 78)]
    assert "brief summary           baseline" in table_text(scores)
    found = compare(first, second, bootstrap=20)
    lines = compare_text(found).splitlines()
    here = [line.split() for line in lines if line.startswith(("  one ", "  two "))]
    assert here[:2] == [["one", "100.0"], ["two", "100.0"]]  # mvbench, of 100
    assert ["one", "summary_exact", "1.00"] in here
    assert ["two", "summary_exact", "0.00"] in here
    assert sum("arXiv 2507.20939, table 1" in line for line in lines) == 4
    assert sum("arXiv 2507.20939, table 2" in line for line in lines) == 6
    text, _ = write_comparison(found, out=tmp_path / "out")
    assert len(json.loads(text.read_text())["published"]) == 4


def two(folder: Path, *, bench: str) -> Path:
    """A measurement whose name says nothing, in a place that does."""
    place = folder / bench / "evaluations" / "held-out"
    return measured(place)


def test_a_comparison_keeps_to_the_figures_and_resamples_that_are_asked_for(tmp_path: Path) -> None:
    first, second = two(tmp_path, bench="one"), two(tmp_path, bench="two")
    found = compare(first, second, metrics=["mcq_accuracy"], bootstrap=20)
    assert list(found["differences"]) == ["mcq_accuracy"]
    with pytest.raises(ValueError, match="speech_qa"):
        compare(first, second, metrics=["speech_qa"])


def test_comparisons_of_measurements_of_one_name_are_told_apart_and_never_overwrite_another(tmp_path: Path) -> None:
    stages = {name: two(tmp_path, bench=name) for name in ("one", "two", "three")}
    for name in ("two", "three"):
        found = compare(stages["one"], stages[name], bootstrap=20)
        text, _ = write_comparison(found, out=tmp_path / "out")
        assert text.name == f"one-held-out-minus-{name}-held-out.json"
    write_comparison(found, out=tmp_path / "out")  # the same once more
    there = (tmp_path / "out" / text.name).read_bytes()
    moved = tmp_path / "else" / "one" / "evaluations" / "held-out"
    with pytest.raises(ValueError, match="give another out="):
        write_comparison({**found, "folders": [str(moved), found["folders"][1]]}, out=tmp_path / "out")
    assert (tmp_path / "out" / text.name).read_bytes() == there


def test_a_folder_that_holds_measurements_names_them(tmp_path: Path) -> None:
    inside = two(tmp_path, bench="one")
    for folder in (tmp_path / "one", inside.parent):
        with pytest.raises(ValueError, match=f"inside it are {inside}"):
            score_folder(folder)


def test_a_measurement_that_was_killed_at_its_first_word_begins_anew(tmp_path: Path) -> None:
    (tmp_path / ".card.json.0123456789ab.partial").write_text("{")
    assert open_measurement(tmp_path, origin={"questions": "q"}, facts={"bench": "shards"})["bench"] == "shards"
    assert read_card(tmp_path)["origin"] == {"questions": "q"}
