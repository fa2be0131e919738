"""Questions: every answer follows from the script, and only from what the item says it needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from arcvideo.synthetic.questions import Item, letter_items, questions
from arcvideo.synthetic.script import Script, draw_script
from arcvideo.tasks import TASKS, make_sample
from arcvideo.tasks.spans import parse_span

SCRIPTS = [
    *(draw_script(split="train", index=index, seed=5) for index in range(150)),
    *(draw_script(split="test", index=index, seed=5) for index in range(50)),
]


def all_items(*tasks: str) -> Iterator[tuple[Script, Item]]:
    for script in SCRIPTS:
        for item in questions(script):
            if not tasks or item["task"] in tasks:
                yield script, item


def names_at(script: Script, name: str) -> list[tuple[int, int]]:
    """Spans of everything that a question calls `name`."""
    spans = [(shape.start, shape.end) for shape in script.shapes if shape.name == name]
    spans += [(word.start, word.end) for word in script.words if f"text {word.text}" == name]
    return spans + [(sound.start, sound.end) for sound in script.sounds if sound.name == name]


def earliest(script: Script) -> list[str]:
    first = min(shape.start for shape in script.shapes)
    return [shape.name for shape in script.shapes if shape.start == first]


def said_from(script: Script, name: str) -> list[str]:
    ((start, _),) = names_at(script, name)
    return [word.text for word in script.speech if int(word.start) == start]


ORACLE: dict[str, Callable[[Script, str], list[str]]] = {
    r"What color is the (.+)\?": lambda script, kind: [shape.color for shape in script.shapes if shape.kind == kind],
    r"What shape is (.+)\?": lambda script, color: [shape.kind for shape in script.shapes if shape.color == color],
    r"Which text is shown\?()": lambda script, _: [word.text for word in script.words],
    r"Which sound is heard\?()": lambda script, _: [sound.name for sound in script.sounds],
    r"Which word is said first\?()": lambda script, _: [min(script.speech, key=lambda word: word.start).text],
    r"Which word is said last\?()": lambda script, _: [max(script.speech, key=lambda word: word.start).text],
    r"Which word is said when the (.+) appears\?": said_from,
    r"What appears earlier\?()": lambda script, _: earliest(script),
}
"""Question -> all right answers, read off the script a second time."""


def right_answers(script: Script, question: str) -> list[str]:
    for pattern, answers in ORACLE.items():
        found = re.fullmatch(pattern, question)
        if found:
            return answers(script, found[1])
    raise AssertionError(f"{question!r}: teach the oracle of this test")


def needs(item: Item) -> set[str]:
    return {tag.removeprefix("needs:") for tag in item["tags"] if tag.startswith("needs:")}


def test_questions_are_the_same_every_time() -> None:
    assert [questions(script) for script in SCRIPTS] == [questions(script) for script in SCRIPTS]


def test_every_item_is_a_task_that_the_tasks_can_read() -> None:
    seen = set()
    for script, item in all_items():
        seen.add(item["task"])
        for style in ("plain", "think") if "think" in item else ("plain",):
            sample = make_sample(item, key="k", media_key=script.key, style=style)
            assert sample.turns[-1].answer.strip()
    assert seen == set(TASKS)


def test_answers_are_true_and_the_only_ones() -> None:
    for script, item in all_items("qa"):
        assert right_answers(script, item["question"]) == [item["answer"]], (script, item)


def test_one_of_four_different_options_is_right() -> None:
    for script, item in all_items("mcq"):
        options = item["options"]
        assert len(options) == len(set(options)) == 4
        right = set(right_answers(script, item["question"]))
        assert [letter for letter, option in zip("ABCD", options, strict=True) if option in right] == [item["answer"]]


def test_the_letter_tells_nothing() -> None:
    letters = [item["answer"] for _, item in all_items("mcq")]
    assert all(0.2 < letters.count(letter) / len(letters) < 0.3 for letter in "ABCD")


def test_other_said_words_stand_among_the_options() -> None:
    """Otherwise naming any word that was heard would be enough."""
    for script, item in all_items("mcq"):
        if "said" in item["question"]:
            said = {word.text for word in script.speech}
            assert len(said & set(item["options"])) >= 2


def test_the_earlier_shape_is_asked_among_both_shapes_and_their_crosses() -> None:
    for script, item in all_items("mcq"):
        if item["question"] == "What appears earlier?":
            one, other = script.shapes
            crosses = {f"{one.color} {other.kind}", f"{other.color} {one.kind}"}
            assert set(item["options"]) == {one.name, other.name} | crosses


def test_spans_are_those_of_the_script() -> None:
    for script, item in all_items("grounding"):
        found = re.fullmatch(r"When is the (.+) (?:visible|shown|heard)\?", item["question"])
        assert found
        assert names_at(script, found[1]) == [tuple(item["span"])]
        assert parse_span(item["answer"]) == tuple(item["span"])
        assert 0 <= item["span"][0] < item["span"][1] <= script.duration


def test_thoughts_about_spans_are_of_two_kinds_and_both_true() -> None:
    kinds = {"named": 0, "looked for": 0}
    for script, item in all_items("grounding"):
        name = item["question"].removeprefix("When is the ").rsplit(" ", 1)[0]
        if item["think"].startswith(name):
            ((start, end),) = names_at(script, name)
            seconds = [int(text[-2:]) for text in item["think"].removeprefix(name).split()]
            assert seconds == list(range(start, end))
            kinds["named"] += 1
        else:
            subject = next(tag.removeprefix("topic:") for tag in item["tags"] if tag.startswith("topic:"))
            assert item["think"] == f"I look for the {subject}."
            kinds["looked for"] += 1
    assert min(kinds.values()) > 0.4 * sum(kinds.values())


def test_thoughts_about_options_are_of_two_kinds_and_both_true() -> None:
    lettered = []
    for _, item in all_items("mcq"):
        right = item["options"]["ABCD".index(item["answer"])]
        assert item["think"] in (f"It is {right}.", f"{right} {item['answer']}.")
        lettered.append(item["think"].endswith(f"{item['answer']}."))
    assert 0.4 < sum(lettered) / len(lettered) < 0.6


def test_the_thought_about_speech_is_what_is_said() -> None:
    for script, item in all_items("qa"):
        if "topic:speech" in item["tags"]:
            said = " ".join(word.text for word in script.speech)
            assert item["think"] == f"I hear {said}."


def test_no_item_carries_a_draft() -> None:
    """Answers that are wrong on purpose would give a later stage something to mend."""
    assert [item for _, item in all_items() if "draft" in item] == []


def test_transcripts_and_captions_are_what_is_said_and_shown() -> None:
    for script, item in all_items("asr"):
        assert item["answer"].split() == [word.text for word in script.speech]
    for script, item in all_items("caption"):
        shown = {"What is shown?": [shape.name for shape in sorted(script.shapes, key=lambda shape: shape.x)]}
        assert item["answer"].split(", ") == shown.get(item["question"], [word.text for word in script.words])


def test_chapters_and_summaries_name_every_event() -> None:
    for script, item in all_items("chapters", "summary"):
        events = [*script.shapes, *script.words, *script.sounds]
        names = [getattr(event, "name", None) or f"text {event.text}" for event in events]
        assert [name for name in names if name not in item["answer"]] == []
        if item["task"] == "chapters":
            assert sorted(map(tuple, item["events"])) == sorted(
                (event.start, event.end, name) for event, name in zip(events, names, strict=True)
            )
            lines = item["answer"].splitlines()
            assert [parse_span(line) for line in lines] == [(start, end) for start, end, _ in item["events"]]


@pytest.mark.parametrize(
    ("need", "seen", "heard"), [("audio", False, True), ("vision", True, False), ("both", True, True)]
)
def test_items_ask_only_for_what_is_there(need: str, seen: bool, heard: bool) -> None:
    found = [script for script, item in all_items() if need in needs(item)]
    assert found
    assert all(script.shapes or not seen for script in found)
    assert all(script.speech or not heard for script in found)


def test_items_about_time_need_a_clip_that_lasts() -> None:
    about_time = [(script, item) for script, item in all_items() if "time" in needs(item)]
    assert {item["task"] for _, item in about_time} == {"grounding", "chapters"}
    assert all(script.duration > 1 for script, _ in about_time)


def test_every_item_says_what_it_needs_and_its_topic() -> None:
    for _, item in all_items():
        assert len(needs(item) - {"time"}) == 1
        assert len([tag for tag in item["tags"] if tag.startswith("topic:")]) == 1


def test_questions_are_not_the_same_for_train_and_test() -> None:
    """Wordings are shared, answers are not: no held-out clip repeats the answers of a training clip."""
    made = [str([(item["question"], item["answer"]) for item in questions(script)]) for script in SCRIPTS]
    kinds = [script.kind for script in SCRIPTS]
    train = {answers for answers, kind in zip(made[:150], kinds[:150], strict=True) if kind == "full"}
    test = {answers for answers, kind in zip(made[150:], kinds[150:], strict=True) if kind == "full"}
    assert train.isdisjoint(test)


def test_texts_without_media_hold_their_own_answer() -> None:
    items = [item for index in range(50) for item in letter_items(seed=5, index=index)]
    assert items == [item for index in range(50) for item in letter_items(seed=5, index=index)]
    for item in items:
        assert len(set(item["options"])) == 4
        stated = [option for option in item["options"] if re.search(rf"\b{option}\b", item["question"])]
        assert stated == [item["options"]["ABCD".index(item["answer"])]]
        assert make_sample(item, key="k", media_key=None).media_key is None
