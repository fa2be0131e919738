from __future__ import annotations

import pickle
from typing import Any

import pytest

from arcvideo.tasks import TASKS, RecordError, make_sample
from arcvideo.tasks.blocks import split_answer
from arcvideo.tasks.fields import SUFFIXES, check_times, suffix
from arcvideo.tasks.mcq import parse_letter
from arcvideo.tasks.spans import parse_span
from arcvideo.types import Sample

ITEMS: dict[str, dict[str, Any]] = {
    "asr": {"answer": "hello"},
    "caption": {"answer": "a cat"},
    "chapters": {"events": [[0, 2, "a cat"], [2, 5.2, "a dog"]]},
    "grounding": {"question": "when?", "span": [2.0, 5.0]},
    "mcq": {"question": "which?", "options": ["red", "blue"], "answer": "B"},
    "qa": {"question": "what?", "answer": "a cat", "turns": [{"question": "why?", "answer": "because"}]},
    "summary": {"title": "Cats", "answer": "cats"},
}


def sample(task: str, style: str = "plain", **changes: Any) -> Sample:
    return make_sample({"task": task, **ITEMS[task], **changes}, key="clip/0", media_key="clip", style=style)


def test_every_task_is_covered_here() -> None:
    assert set(ITEMS) == set(TASKS)


@pytest.mark.parametrize("task", sorted(ITEMS))
def test_think_style_is_a_valid_answer_around_the_plain_one(task: str) -> None:
    plain, think = sample(task), sample(task, "think", think="so it is")
    parsed = split_answer(think.turns[0].answer)
    assert parsed.valid
    assert parsed.think == "so it is"
    assert parsed.answer == plain.turns[0].answer
    assert plain.instruction == "none"
    assert think.instruction == {"mcq": "mcq", "grounding": "grounding"}.get(task, "general")
    assert plain.truth == think.truth


def test_questions_in_the_released_wording() -> None:
    assert sample("mcq").turns[0].question == "which?\nA.red\nB.blue"
    assert sample("summary").turns[0].question == "The title of the video isCats\nDescribe the video content."
    assert sample("chapters").turns[0].answer == "00:00:00 - 00:00:02 a cat\n00:00:02 - 00:00:05 a dog"


def test_a_draft_stands_in_for_the_answer_in_its_style_alone() -> None:
    span = sample("grounding", "draft", think="x", draft="00:00:02 - 00:00:04")
    assert split_answer(span.turns[0].answer).answer == "00:00:02 - 00:00:04"
    draft = {"options": ["blue", "red"], "answer": "A"}
    drafted, plain = (sample("mcq", style, think="x", draft=draft) for style in ("draft", "think"))
    assert (drafted.turns[0].question, drafted.truth["letter"]) == ("which?\nA.blue\nB.red", "A")
    assert (plain.turns[0].question, plain.truth["letter"]) == ("which?\nA.red\nB.blue", "B")


@pytest.mark.parametrize("draft", ["B", {"options": ["red", "blue"]}])
def test_a_draft_of_a_multiple_choice_has_options_and_answer(draft: Any) -> None:
    with pytest.raises(RecordError, match="bad_draft"):
        sample("mcq", "draft", think="x", draft=draft)


def test_answers_are_read_back_as_the_truth() -> None:
    mcq, grounding = sample("mcq", "think", think="x"), sample("grounding", "think", think="x")
    assert parse_letter(mcq.turns[0].answer, options=mcq.truth["options"]) == mcq.truth["letter"]
    assert parse_span(grounding.turns[0].answer) == grounding.truth["span"]


@pytest.mark.parametrize(
    "changes",
    [
        {"options": ["A. red", "B. blue"]},
        {"options": ["(A) red", "(B) blue"]},
        {"options": ["a. red", "b. blue"]},
        {"options": ["\uff21\uff0ered", "\uff22\uff0eblue"]},
        {"options": {"A": "red", "B": "blue"}},
        {"question": "which?\nA. red\nB. blue"},
        {"question": "which? Options: (A) red (B) blue", "options": ["A. red", "B. blue"]},
        {"answer": "B."},
        {"answer": "(B)"},
        {"answer": "\uff22"},
        {"answer": "B. blue"},
        {"answer": "blue"},
    ],
)
def test_an_option_has_one_letter_however_the_file_writes_it(changes: dict[str, Any]) -> None:
    made = sample("mcq", **changes)
    assert made.turns[0].question == "which?\nA.red\nB.blue"
    assert (made.turns[0].answer, made.truth) == ("B", {"letter": "B", "options": ("red", "blue")})


def test_letters_that_not_every_option_carries_are_its_text() -> None:
    question = sample("mcq", options=["A. Lincoln", "Obama"]).turns[0].question
    assert question == "which?\nA.A. Lincoln\nB.Obama"


@pytest.mark.parametrize(
    ("item", "fits"),
    [
        ({"span": [1, 4]}, True),
        ({"span": [1, 5]}, True),  # annotations round
        ({"span": [1, 5.1]}, False),
        ({"span": [4, 5]}, False),
        ({"events": [[0, 1, "a"], [3, 9, "b"]]}, False),
        ({"events": [[0, 1, "a"], [3, 4, "b"]]}, True),
        ({"answer": "x"}, True),
    ],
)
def test_times_must_lie_in_the_clip(item: dict[str, Any], fits: bool) -> None:
    check_times(item, seconds=0.0)  # without a clip there is nothing to compare with
    if fits:
        check_times(item, seconds=4.0)
    else:
        with pytest.raises(RecordError, match="span_outside"):
            check_times(item, seconds=4.0)


def test_further_turns_follow() -> None:
    assert [turn.answer for turn in sample("qa").turns] == ["a cat", "because"]


@pytest.mark.parametrize(
    ("task", "changes", "reason"),
    [
        ("asr", {"answer": None}, "no_answer"),
        ("asr", {"answer": "  "}, "no_answer"),
        ("asr", {"answer": 3}, "bad_answer"),
        ("qa", {"question": ""}, "no_question"),
        ("qa", {"turns": ["x"]}, "bad_turns"),
        ("mcq", {"answer": "C"}, "bad_answer"),
        ("mcq", {"answer": "green"}, "bad_answer"),
        ("mcq", {"answer": "B. red"}, "bad_answer"),
        ("mcq", {"answer": "A or B"}, "bad_answer"),
        ("mcq", {"options": {"A": "red", "C": "blue"}}, "bad_options"),
        ("mcq", {"options": ["A. red", "B. red"]}, "bad_options"),
        ("mcq", {"options": ["red"]}, "bad_options"),
        ("mcq", {"options": ["red", "red"]}, "bad_options"),
        ("grounding", {"span": None}, "no_answer"),
        ("grounding", {"span": [5, 2]}, "bad_span"),
        ("grounding", {"span": [5, 5]}, "empty_span"),
        ("grounding", {"span": [0, float("nan")]}, "bad_span"),
        ("chapters", {"events": []}, "no_answer"),
        ("chapters", {"events": [[0, 1]]}, "bad_events"),
    ],
)
def test_malformed_items_are_refused_with_a_reason(task: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        sample(task, **changes)
    assert caught.value.reason == reason


def test_record_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(RecordError("no_answer", "field 'answer'")))
    assert (error.reason, error.detail) == ("no_answer", "field 'answer'")


def test_instruction_suffixes() -> None:
    assert suffix("none", wording="arc") == ""
    assert suffix("mcq", wording="arc") == (
        "Output the thinking process in <think> </think> and final answer (only option index) in <answer> </answer> "
        "tags, i.e., <think> reasoning process here </think><answer> answer here </answer>."
    )
    assert "(only time range)" in suffix("grounding", wording="arc")
    assert all(set(texts) == {"none", "general", "mcq", "grounding"} for texts in SUFFIXES.values())
    with pytest.raises(ValueError, match="wording"):
        suffix("mcq", wording="long")


@pytest.mark.parametrize(
    ("item", "reason"), [({"task": "poem"}, "unknown_task"), ({}, "unknown_task"), ("x", "bad_item")]
)
def test_unknown_tasks_are_refused(item: object, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        make_sample(item, key="clip/0", media_key="clip")
    assert caught.value.reason == reason
