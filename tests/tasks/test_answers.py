from __future__ import annotations

import pytest

from arcvideo.tasks.answers import split_answer
from arcvideo.tasks.mcq import parse_letter
from arcvideo.tasks.spans import clock, clock_span, parse_span, temporal_iou

OPTIONS = ["red", "blue", "green", "white"]


def test_valid_answer_is_exactly_one_think_and_one_answer_block() -> None:
    parsed = split_answer("<think>a\nb</think>\n<answer> B </answer>\n")
    assert (parsed.think, parsed.answer, parsed.valid) == ("a\nb", "B", True)


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "<answer>B</answer>",
        "<think>a</think>B",
        "so <think>a</think><answer>B</answer>",
        "<think>a</think><answer>B</answer> done",
        "<think>a</think> and <answer>B</answer>",
        "<answer>B</answer><think>a</think>",
        "<think><think>a</think></think><answer>B</answer>",
        "<think>a</think><answer>B</answer><answer>C</answer>",
        "<think>a</think><answer>B",
        "",
    ],
)
def test_other_shapes_are_not_valid(text: str) -> None:
    assert not split_answer(text).valid


@pytest.mark.parametrize(
    "text",
    ["B", " B ", "B.", "(B)", "b", "B. blue", "B) blue", "B: blue", "Answer: B", "The answer is (B).", "option B",
     "<think>A is wrong</think><answer>B</answer>", "\uff22", "\u7b54\u6848\uff1aB", "\u9009B", "B\nbecause"],
)  # fmt: skip
def test_letter_is_read(text: str) -> None:
    assert parse_letter(text) == "B"
    assert parse_letter(text, options=OPTIONS) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "blue or red",
        "A and B",
        "A, B",
        "A or B",
        "Bluer",
        "A blue car",
        "I think so",
        "(A) or (B)",
        "B. blue or C. green",
    ],
)
def test_ambiguous_letters_are_refused(text: str) -> None:
    assert parse_letter(text, options=OPTIONS) is None


def test_options_bound_the_letter_and_check_its_text() -> None:
    assert parse_letter("E", options=OPTIONS) is None
    assert parse_letter("E") == "E"
    assert parse_letter("B blue", options=OPTIONS) == "B"
    assert parse_letter("B. red", options=OPTIONS) is None
    assert parse_letter("Blue.", options=OPTIONS) == "B"
    assert parse_letter("Blue.") is None


def test_texts_of_options_that_hold_letters_or_other_texts_are_told_apart() -> None:
    nested = ["red", "red circle", "Both A and B", "None of A"]
    assert parse_letter("B. red circle", options=nested) == "B"
    assert parse_letter("A. red circle", options=nested) is None
    assert parse_letter("C. Both A and B", options=nested) == "C"
    assert parse_letter("both A and B", options=nested) == "C"
    assert parse_letter("A and B", options=nested) is None
    assert parse_letter("The right answer is: B", options=["right", "left"]) == "B"
    assert parse_letter("B", options=["B", "A"]) == "B"  # a letter is a letter, whatever a text says
    assert parse_letter("B. red", options=["Red", "red"]) == "B"  # texts that differ in case alone name nothing


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("00:00:03 - 00:00:07", (3, 7)),
        ("0:00:03-0:00:07", (3, 7)),
        ("<answer><span>00:00:03 - 00:00:07</span></answer>", (3, 7)),
        ("<think>00:00:00 - 00:00:01</think><answer>00:00:03 - 00:00:07</answer>", (3, 7)),
        ("01:02:03 \u2013 01:02:04", (3723, 3724)),
        ("03:00 to 04:10", (180, 250)),
        ("3.5s to 7 s", (3.5, 7)),
        ("from 3 to 7 seconds", (3, 7)),
        ("00:00:03\u81f300:00:07", (3, 7)),
        ("\u4ece00:00:03\u523000:00:07", (3, 7)),
        ("00\uff1a00\uff1a03 \uff0d 00\uff1a00\uff1a07", (3, 7)),
        ("00:00:03\u2014\u201400:00:07".replace("\u2014\u2014", "\u2014"), (3, 7)),
        ("3\u79d2 - 7\u79d2", (3, 7)),
        ("3 - 7", (3, 7)),
        ("[3.0, 7.5]", (3, 7.5)),
        ("between 00:00:03 and 00:00:07.", (3, 7)),
        ("00:00:05 - 00:00:05", (5, 5)),
    ],
)
def test_span_is_read(text: str, span: tuple[float, float]) -> None:
    assert parse_span(text) == pytest.approx(span)


@pytest.mark.parametrize(
    "text",
    ["", "never", "00:00:07 - 00:00:03", "00:00:75 - 00:02:00", "00:61:00 - 00:62:00", "00:00:03", "I saw 2 - 3 cats"],
)
def test_spans_that_cannot_be_read_are_none(text: str) -> None:
    assert parse_span(text) is None


def test_temporal_iou() -> None:
    assert temporal_iou((0, 4), (2, 6)) == pytest.approx(2 / 6)
    assert temporal_iou((0, 1), (2, 3)) == 0
    assert temporal_iou((1, 3), (1, 3)) == 1
    assert temporal_iou((1, 1), (1, 1)) == 0


def test_clock_rounds_to_whole_seconds_and_reads_back() -> None:
    assert clock(3725.4) == "01:02:05"
    assert clock(2.5) == "00:00:03"
    assert clock_span((1.0, 1.2)) == "00:00:01 - 00:00:02"
    assert parse_span(clock_span((2, 5))) == (2, 5)
