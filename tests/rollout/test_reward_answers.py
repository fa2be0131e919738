"""What each kind of answer is worth: a table of adversarial answers, and properties of arbitrary ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcvideo.rollout.rewards.builtin import Reward
from arcvideo.rollout.rewards.loading import load_reward, rewards
from arcvideo.tasks.fields import SUFFIXES
from arcvideo.tasks.spans import clock_span, parse_span

TRUTH = (2.0, 6.0)
THINK = "<think>x</think>"


def letter_worth(text: str, *, right: str = "A", options: tuple[str, ...] = ("red", "blue")) -> Any:
    return load_reward("mcq_accuracy")([text], task=["mcq"], letter=[right], options=[options])[0]


def span_worth(text: str, *, reward: str = "temporal_iou", truth: tuple[float, float] = TRUTH) -> Any:
    return load_reward(reward)([text], task=["grounding"], span=[truth], duration=[8.0])[0]


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        (f"{THINK}<answer>A</answer>", 1.0),
        ("<think>maybe B</think><answer>A</answer>", 1.0),
        ("<answer>A.red</answer>", 1.0),
        ("<answer>A. red</answer>", 1.0),
        ("<answer>(A)</answer>", 1.0),
        ("<answer>选A</answer>", 1.0),
        ("<answer>答案:A。</answer>", 1.0),
        ("A", 1.0),
        ("A.blue", 0.0),  # the letter of one option, the text of another
        ("A or B", 0.0),
        ("<answer>A, B</answer>", 0.0),
        ("A and then <answer></answer>", 0.0),
        ("", 0.0),
        (THINK, 0.0),
        ("<answer></answer>", 0.0),
        ("<think>A</think><answer>B</answer>", 0.0),
        ("<think>A</think>", 0.0),  # a thought is not an answer
        ("<think><answer>A</answer></think>", 0.0),  # not in disguise either
        ("<think>so A", 0.0),  # cut off while thinking
        ("<think><answer>B</answer></think><answer>A</answer>", 1.0),
        ("<answer>A</answer><answer>B</answer>", 0.0),  # two answers are none
        ("<answer>A</answer><answer>A</answer>", 0.0),
        ("<answer>B</answer><answer>A</answer>", 0.0),
        ("<think>so <answer>A</answer>", 0.0),  # in a thought that never closes
        ("<answer>A", 0.0),  # cut off
        ("red", 1.0),
        ("blue", 0.0),
        ("Which colour is seen?\nA.red\nB.blue", 0.0),  # the question copied
        ("<answer>C</answer>", 0.0),
        ("<answer>D.green</answer>", 0.0),
    ],
)
def test_adversarial_choices(text: str, worth: float) -> None:
    assert letter_worth(text) == worth


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        (f"{THINK}<answer>00:00:02 - 00:00:06</answer>", 1.0),
        ("<answer><span>00:00:02 - 00:00:06</span></answer>", 1.0),
        ("<answer>2 s to 6 s</answer>", 1.0),
        ("<answer>2.0-6.0 seconds</answer>", 1.0),
        ("<answer>从00:02到00:06。</answer>", 1.0),
        ("<answer>00：00：02－00：00：06</answer>", 1.0),  # full-width digits' punctuation
        ("00:00:00 - 00:00:08", 0.5),  # the whole clip
        ("00:00:00 - 99:59:59", 4 / 359999),  # far outside
        ("Between 00:00:00 and 00:00:08, when is it heard?", 0.5),  # times copied from a question that names some
        (SUFFIXES["arc"]["grounding"], 0.0),  # the instruction copied
        ("00:00:07 - 00:00:08", 0.0),
        ("00:00:02 - 00:00:02", 0.0),  # a moment has no overlap
        ("00:00:06 - 00:00:02", 0.0),  # reversed
        ("<answer>00:00:99 - 00:02:00</answer>", 0.0),  # no such clock
        ("", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer>never</answer>", 0.0),
        ("<think>00:00:02 - 00:00:06</think><answer>00:00:00 - 00:00:01</answer>", 0.0),
        ("<think>00:00:02 - 00:00:06</think>", 0.0),
        ("<think><answer>00:00:02 - 00:00:06</answer></think>", 0.0),
        ("<think>00:00:02 - 00:00:06", 0.0),
        ("<answer>00:00:00 - 00:00:01, 00:00:02 - 00:00:06</answer>", 0.0),  # two spans are none
        ("<answer>00:00:00 - 00:00:01</answer><answer>00:00:02 - 00:00:06</answer>", 0.0),
        ("<answer>-2 - 6</answer>", 0.0),
    ],
)
def test_adversarial_spans(text: str, worth: float) -> None:
    assert span_worth(text) == pytest.approx(worth)


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        (" <think></think>\n<answer>b</answer>\n", 1.0),
        ("<think>a</think><answer>b</answer> and more", 0.0),
        ("so <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<think><think>a</think></think><answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think>", 0.0),
        ("", 0.0),
    ],
)
def test_adversarial_formats(text: str, worth: float) -> None:
    assert load_reward("format")([text])[0] == worth


@pytest.mark.parametrize(
    ("reward", "text", "worth"),
    [
        ("temporal_iou_edges", "00:00:02 - 00:00:06", 1.0),
        ("temporal_iou_edges", "00:00:00 - 00:00:08", 0.5 * 0.75 * 0.75),
        ("temporal_iou_edges", "00:00:03 - 00:00:06", 0.75 * 0.875),
        ("temporal_iou_edges", "00:00:02 - 99:59:59", 0.0),  # an error beyond the duration is not negative
        ("temporal_recall(threshold=0.5)", "00:00:00 - 00:00:08", 1.0),
        ("temporal_recall(threshold=0.7)", "00:00:00 - 00:00:08", 0.0),
        ("temporal_recall(threshold=0.7)", "", 0.0),
    ],
)
def test_variants_of_the_span_reward(reward: str, text: str, worth: float) -> None:
    assert span_worth(text, reward=reward) == pytest.approx(worth)


# Texts made of the pieces that parsers look for, so that near-misses are common.
MARKS = "<think> </think> <answer> </answer> <span> A B Z (A) . 00:00:02 12:75 - to 至 3.5 seconds 。 答案 é ٣"
PIECES = st.sampled_from([*MARKS.split(), " ", "\n", "\u0000", "9" * 40])
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=12).map("".join))
SPANS = st.tuples(st.integers(0, 5000), st.integers(1, 500)).map(lambda pair: (float(pair[0]), float(sum(pair))))
ALL: list[Reward] = [
    *rewards().values(),
    load_reward("temporal_recall(threshold=0.5)"),
    load_reward("soft_overlong(max_length=8, cache=4)"),
    load_reward("repetition(ngram=2)"),
]


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, ids=st.lists(st.integers(0, 3), min_size=1, max_size=20), truth=SPANS)
def test_every_reward_gives_any_text_a_finite_score_in_its_range(
    text: str, ids: list[int], truth: tuple[float, float]
) -> None:
    columns = {"letter": ["A"] * 2, "options": [("red", "blue")] * 2, "span": [truth] * 2, "duration": [8.0, None]}
    for reward in ALL:
        scores = reward([text] * 2, task=["mcq", "grounding"], completion_ids=[ids] * 2, **columns)
        assert len(scores) == 2
        assert all(score is None or (math.isfinite(score) and -1.0 <= score <= 1.0) for score in scores)


@settings(max_examples=150, deadline=None)
@given(predicted=SPANS, truth=SPANS)
def test_span_rewards_are_one_for_the_truth_only_and_order_by_strictness(
    predicted: tuple[float, float], truth: tuple[float, float]
) -> None:
    text = clock_span(predicted)
    assert parse_span(text) == predicted
    iou = span_worth(text, truth=truth)
    assert (iou == 1.0) == (predicted == truth)
    assert span_worth(text, reward="temporal_iou_edges", truth=truth) <= iou
    assert span_worth(text, reward="temporal_recall(threshold=0.5)", truth=truth) == float(iou >= 0.5)
    assert iou == span_worth(clock_span(truth), truth=predicted)  # symmetric


@settings(max_examples=150, deadline=None)
@given(predicted=SPANS, truth=SPANS, seconds=st.floats(1.0, 20000.0))
def test_edges_are_forgiven_more_in_a_longer_clip_and_never_beyond_the_overlap(
    predicted: tuple[float, float], truth: tuple[float, float], seconds: float
) -> None:
    worth = [
        float(
            load_reward("temporal_iou_edges")([clock_span(predicted)], task=["grounding"], span=[truth], duration=[d])[
                0
            ]
            or 0
        )
        for d in (seconds, 2 * seconds)
    ]
    assert 0.0 <= worth[0] <= worth[1] <= span_worth(clock_span(predicted), truth=truth)


@settings(max_examples=100, deadline=None)
@given(thought=TEXTS.filter(lambda text: not any(tag in text for tag in ("<", ">"))), truth=SPANS)
def test_no_thought_earns_anything(thought: str, truth: tuple[float, float]) -> None:
    text = f"<think>{thought} A {clock_span(truth)}</think>"
    assert letter_worth(text) == 0.0
    assert span_worth(text, truth=truth) == 0.0
    answered = f"{text}<answer>{clock_span(truth)}</answer>"
    assert span_worth(answered, truth=truth) == 1.0


@pytest.mark.parametrize(
    ("task", "text", "worth"),
    [
        ("mcq", "<answer>A</answer>", 1.0),
        ("mcq", "B", 1.0),  # right or wrong
        ("mcq", "A or B", 0.0),
        ("mcq", "A cat", 0.0),
        ("grounding", "00:00:02 - 00:00:03", 1.0),
        ("grounding", "00:00:02 - 00:00:03, 00:00:04 - 00:00:05", 0.0),
        ("asr", "<answer>red blue</answer>", 1.0),
        ("asr", "<answer>red</answer><answer>blue</answer>", 0.0),
        ("asr", "red.</think><answer>blue", 0.0),
        ("asr", "<think>red", 0.0),
        ("asr", "", 0.0),
    ],
)
def test_one_answer_pays_for_an_answer_that_can_be_read(task: str, text: str, worth: float) -> None:
    notes: dict[str, Any] = {}
    options = ("red", "blue") if task == "mcq" else None
    scores = load_reward("one_answer")([text], task=[task], options=[options], log_extra=notes.__setitem__)
    assert scores == [worth]
    assert (notes["problem"] == [None]) == (worth == 1.0)


@pytest.mark.parametrize("text", ["", "A", "00:00:02 - 00:00:06"])
def test_an_item_without_truth_is_refused_instead_of_scored(text: str) -> None:
    with pytest.raises(ValueError, match="no 'letter'"):
        load_reward("mcq_accuracy")([text], task=["mcq"], letter=[None])
    with pytest.raises(ValueError, match="no 'letter'"):
        load_reward("mcq_accuracy")([text], task=["mcq"])
    for span in (None, (2.0, 2.0)):
        with pytest.raises(ValueError, match="no answer can overlap"):
            load_reward("temporal_iou")([text], task=["grounding"], span=[span])
