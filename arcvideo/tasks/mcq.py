"""Multiple choice: options A, B, ... and the letter of the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from arcvideo.tasks.answers import Reading, parse_letter, read_letter, split_answer
from arcvideo.tasks.fields import RecordError, conversation, required_text, styled_answer
from arcvideo.tasks.letters import last_named
from arcvideo.tasks.task import Asked, Measure, Score, Task, Truth, known
from arcvideo.types import Sample

_OPENS, _CLOSES = "(\uff08", ".):\u3001\uff0e\uff1a\uff09"
_LABELS = [rf"[{_OPENS}]?[{letter}{chr(ord(letter) + 0xFEE0)}]\s*[{_CLOSES}]" for letter in ascii_uppercase]
"""What public files write before the options: `A.`, `A)`, `(A)`, `A:` and their full-width forms."""
_LABELLED = [re.compile(rf"\s*{label}\s*(?=\S)") for label in _LABELS]
_LIST_BEGINS, _LIST_GOES_ON = re.compile(rf"(?:^|\s){_LABELS[0]}\s*\S"), re.compile(rf"[\s,;]{_LABELS[1]}\s*\S")
_HEADINGS = ("options", "choices", "\u9009\u9879")


def _sample(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `question`, `options` (2 to 26 texts, or an object of letters and texts), `answer` (a letter).

    Letters that the options carry themselves, and a list of the options at the end of the question, are taken away
    before the options are listed. The answer is read as an answer is: `B`, `B.`, `(B)`, `B. blue` and `blue` name B.

    `draft`, an object with `options` and `answer`, takes their place in the style of that name.
    """
    if style == "draft":
        item = {**item, **_draft(item.get("draft"))}
    answer = required_text(item, "answer")
    question = required_text(item, "question")
    options = _options(item.get("options"))
    letters = ascii_uppercase[: len(options)]
    letter = read_letter(answer, options=options)
    if letter.value is None:
        raise RecordError(
            "bad_answer", f"the answer must be one of the letters {letters}, got {answer!r}: {letter.problem}"
        )
    question = f"{_without_list(question, options=options)}\n{_listed(options)}"
    return Sample(
        key=key,
        task="mcq",
        turns=conversation(item, question=question, answer=styled_answer(item, answer=letter.value, style=style)),
        media_key=media_key,
        truth={"letter": letter.value, "options": options},
        instruction="mcq" if style != "plain" else "none",
    )


def _draft(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or set(value) != {"options", "answer"}:
        raise RecordError(
            "bad_draft", f"'draft' of a multiple choice must be an object of options and answer: {value!r}"
        )
    return {**value, "draft": None}


def with_options(question: str, options: Sequence[str] | Mapping[str, str]) -> str:
    """Return a question with its options listed as they are trained.

    Raises:
        RecordError: `bad_options`: not 2 to 26 different texts.
    """
    texts = _options(list(options) if isinstance(options, tuple) else options)
    return f"{_without_list(question, options=texts)}\n{_listed(texts)}"


def lists_options(question: str) -> bool:
    """Return whether a question lists options itself: an A before a B, as files write them."""
    first = _LIST_BEGINS.search(question)
    return first is not None and _LIST_GOES_ON.search(question, first.start()) is not None


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}.{option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def _options(value: Any) -> tuple[str, ...]:
    texts = value
    if isinstance(value, Mapping):  # {"A": "red", "B": "blue"}
        letters = list(ascii_uppercase[: len(value)])
        texts = [value[letter] for letter in letters] if set(value) == set(letters) else None
    good = isinstance(texts, list) and all(isinstance(option, str) and option.strip() for option in texts)
    if not good or not 2 <= len(texts) <= len(ascii_uppercase):
        raise RecordError("bad_options", f"'options' must be a list of 2 to 26 non-empty strings, got {value!r}")
    texts = _unlabelled(texts)
    if len({option.strip() for option in texts}) < len(texts):
        raise RecordError("bad_options", f"'options' repeats a text, so the right letter is ambiguous: {value!r}")
    return tuple(texts)


def _unlabelled(options: Sequence[str]) -> list[str]:
    """Return the options without the letters they carry, when each carries its own."""
    labels = [pattern.match(option) for pattern, option in zip(_LABELLED, options, strict=False)]
    if not all(labels):
        return list(options)
    return [option[label.end() :] for option, label in zip(options, labels, strict=True) if label]


def _without_list(question: str, *, options: Sequence[str]) -> str:
    """Return the question without a list of all its options, each behind its letter, that it ends with.

    Read from the end, with nothing compiled: this runs for every item of every epoch.
    """
    *others, last = zip(ascii_uppercase, options, strict=False)
    rest = _before_option(question.rstrip(), letter=last[0], text=last[1].strip())
    for letter, option in reversed(others):
        rest = None if rest is None else _before_option(_ended(rest), letter=letter, text=_ended(option.strip()))
    if rest is None:
        return question
    rest = rest.rstrip()
    heading = rest[:-1].rstrip() if rest.endswith((":", "\uff1a")) else ""
    for name in _HEADINGS:
        if heading[-len(name) :].lower() == name:
            rest = heading[: -len(name)].rstrip()
    return rest or question


def _ended(text: str) -> str:
    """Return a text without the white space, commas and semicolons behind it, which stand between listed options."""
    while text != (shorter := text.rstrip().rstrip(",;")):
        text = shorter
    return text


def _before_option(question: str, *, letter: str, text: str) -> str | None:
    """Return what stands before the option that a question ends with, None when it ends with another one."""
    behind = len(question) - len(text)
    if behind < 0 or question[behind:].lower() != text.lower():
        return None
    label = question[:behind].rstrip()
    named = label[:-1].rstrip()
    if not label.endswith(tuple(_CLOSES)) or named[-1:].upper() not in (letter, chr(ord(letter) + 0xFEE0)):
        return None
    before = named[:-1]
    return before[:-1] if before.endswith(tuple(_OPENS)) else before


def _read(text: str, truth: Truth) -> Reading[str]:
    return read_letter(text, options=truth.get("options"))


def _compared(truth: Truth) -> str:
    return str(known(truth, "letter"))


def _tell(text: str) -> list[str]:
    return [f"option: {parse_letter(text) or 'none that can be read'}"]


def _right(text: str, truth: Truth) -> Score:
    return Score(value=float(_read(text, truth).value == _compared(truth)))


def _followed(text: str, truth: Truth) -> Score:
    """Return whether an answer is the option that its thought names last; thoughts that name none do not count."""
    named = last_named(split_answer(text).think or "", options=known(truth, "options"))
    if named is None:
        return Score(value=0.0, weight=0.0)
    return Score(value=float(_read(text, truth).value == named))


def _guessed(items: Sequence[Asked]) -> float:
    return sum(1 / len(item.truth["options"]) for item in items) / len(items)


MCQ = Task(
    name="mcq",
    instruction="mcq",
    sample=_sample,
    read=_read,
    compared=_compared,
    tell=_tell,
    rewards={"mcq_accuracy": lambda said, true, seconds: float(said == true)},
    text_draft=False,  # the passing answer is the item's own letter, whatever stands beside it
    measures=(
        Measure(name="mcq_accuracy", score=_right, chance=_guessed),
        # Does the thought lead to the answer? Where it does not, it is decoration, and rewards cannot shape it.
        Measure(name="mcq_thought_followed", score=_followed, chance=_guessed, on_request=True),
    ),
)
