from __future__ import annotations

import itertools

import pytest

from arcvideo.tasks import TASKS, RecordError, make_sample, scoring
from arcvideo.tasks.spans import temporal_iou


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [
        ("", "", 0),
        ("a b c", "a b c", 0),
        ("a b c", "a c", 1),
        ("", "a b", 2),
        ("a x c", "a b c d", 2),
        ("b a", "a b", 2),
    ],
)
def test_edit_distance(first: str, second: str, edits: int) -> None:
    assert scoring.edit_distance(first.split(), second.split()) == edits
    assert scoring.edit_distance(second.split(), first.split()) == edits


def test_transcripts_are_compared_without_case_punctuation_and_tags() -> None:
    assert scoring.transcript_edits("<think>x</think><answer>Hello, World.</answer>", truth="hello world") == (0, 2)
    assert scoring.transcript_edits("hello", truth="hello world") == (1, 2)
    assert scoring.transcript_edits("今天 好", truth="今天很好。") == (1, 4)


def test_answers_are_worth_what_they_should() -> None:
    assert scoring.exact("Red.", truth="red") == 1.0
    assert scoring.exact("dark red", truth="red") == 0.0
    choice = {"letter": "B", "options": ("red", "blue")}
    right = TASKS["mcq"].measures[0]
    assert right.score("<think>is it A?</think><answer>B</answer>", choice).value == 1.0
    assert right.score("no idea", choice).value == 0.0
    overlap = TASKS["grounding"].measures[0]
    assert overlap.score("00:00:02 - 00:00:04", {"span": (2.0, 6.0)}).value == 0.5
    assert overlap.score("soon", {"span": (2.0, 6.0)}).value == 0.0
    assert scoring.word_f1("<answer>red one</answer>", truth="blue square says one") == pytest.approx(2 / 6)
    assert scoring.word_f1("", truth="red") == 0.0


def test_an_answer_follows_its_thought_when_it_is_the_option_named_last() -> None:
    followed = next(measure for measure in TASKS["mcq"].measures if measure.name == "mcq_thought_followed")
    truth = {"letter": "A", "options": ("red", "dark blue", "green")}
    cases = {
        "<think>It is dark blue.</think><answer>B</answer>": (1.0, 1.0),
        "<think>Not red, dark  Blue B.</think><answer>B. dark blue</answer>": (1.0, 1.0),
        "<think>dark blue or red? Green.</think><answer>A</answer>": (0.0, 1.0),
        "<think>It is red.</think>no block": (0.0, 1.0),
        "<think>I look.</think><answer>A</answer>": (0.0, 0.0),
        "B": (0.0, 0.0),
    }
    found = {text: followed.score(text, truth) for text in cases}
    assert {text: (score.value, score.weight) for text, score in found.items()} == cases


def test_best_constant_span_equals_trying_all() -> None:
    truths = [(0.0, 2.0), (1.0, 3.0), (1.0, 4.0), (5.5, 7.2)]
    grid = [(float(start), float(end)) for start, end in itertools.combinations(range(9), 2)]

    def mean(span: tuple[float, float]) -> float:
        return sum(temporal_iou(span, truth) for truth in truths) / len(truths)

    assert mean(scoring.best_constant_span(truths)) == pytest.approx(max(map(mean, grid)))


def test_chance_levels_use_the_best_answer_that_ignores_the_clip() -> None:
    assert scoring.most_frequent_share([("q", "red"), ("q", "Red"), ("q", "blue"), ("other", "one")]) == 0.75
    assert scoring.constant_transcript_error(["a b", "a c", "a b"]) == pytest.approx(1 / 6)
    assert scoring.constant_transcript_error(["a", "b c d"]) <= 1.0


def test_nothing_said_is_never_as_right_as_nothing_known() -> None:
    for measure, text in ((TASKS["mcq"].measures[0], "who knows"), (TASKS["grounding"].measures[0], "00:01 - 00:02")):
        with pytest.raises(ValueError, match="the truth has"):
            measure.score(text, {})
    assert scoring.exact("", truth="\N{THUMBS UP SIGN}") == 0.0
    assert scoring.exact("\N{THUMBS UP SIGN}", truth="\N{THUMBS UP SIGN}") == 1.0
    assert scoring.word_f1("", truth="!") == 0.0
    assert scoring.transcript_edits("", truth="\N{MUSICAL NOTE}") == (1, 1)


def test_a_transcript_that_runs_on_is_wrong_by_all_that_it_adds() -> None:
    text = "<answer>red blue</answer><answer>green white</answer>"
    assert scoring.transcript_edits(text, truth="red blue") == (2, 2)
    assert scoring.exact(text, truth="red blue") == 0.0


def test_of_several_moments_the_best_one_counts() -> None:
    """QVHighlights: an answer is compared with the moment it overlaps most, at every threshold."""
    overlap = TASKS["grounding"].measures[0]
    truth = {"span": [10.0, 30.0], "spans": [[2.0, 6.0], [10.0, 30.0]], "seconds": 40.0}
    assert overlap.score("2 - 6", truth).value == 1.0
    assert overlap.score("10 - 20", truth).value == 0.5
    assert overlap.score("2 - 30", truth).value == pytest.approx(20 / 28)
    assert overlap.score("31 - 35", truth).value == 0.0
    recall = next(one for one in TASKS["grounding"].measures if one.name == "grounding_r1_70")
    assert [recall.score(text, truth).value for text in ("2 - 6", "10 - 20", "2 - 30")] == [1.0, 0.0, 1.0]


def test_items_with_several_moments_keep_them_as_truth() -> None:
    item = {"task": "grounding", "question": "When?", "span": [3, 9], "spans": [[0, 1], [3, 9]]}
    assert make_sample(item, key="k", media_key="m").truth == {"span": (3.0, 9.0), "spans": ((0.0, 1.0), (3.0, 9.0))}
    for spans, reason in (
        ([[0, 1]], "bad_spans"),
        ([[3, 9], [4, 4]], "empty_span"),
        (3, "bad_spans"),
        ([], "bad_spans"),
    ):
        with pytest.raises(RecordError) as error:
            make_sample({**item, "spans": spans}, key="k", media_key="m")
        assert error.value.reason == reason
