"""What all tasks share: fields of a record's item, read with an error that names the field, and the instructions that
ask for reasoning and an answer block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from arcvideo.types import Sample, Turn

_LONGEST = 500
"""Characters of what is said about a record; a field of megabytes is not repeated."""
PAST_END = 1.0
"""Seconds that a time may lie behind the end of its clip: annotations round, containers round otherwise."""
_ARC = (
    "Output the thinking process in <think> </think> and final answer{only} in <answer> </answer> tags, i.e., "
    "<think> reasoning process here </think><answer> answer here </answer>."
)
SUFFIXES: dict[str, dict[str, str]] = {
    "arc": {
        "none": "",
        "general": _ARC.format(only=""),
        "mcq": _ARC.format(only=" (only option index)"),
        "grounding": _ARC.format(only=" (only time range)"),
    },
    "brief": {
        "none": "",
        "general": "Think, then answer.",
        "mcq": "Think, then give the option.",
        "grounding": "Think, then give the time range.",
    },
}


class RecordError(ValueError):
    """A record or item cannot become a sample; `reason` is a short name to count by, `detail` says what is wrong."""

    def __init__(self, reason: str, detail: str = "") -> None:
        detail = detail if len(detail) <= _LONGEST else f"{detail[:_LONGEST]}..."
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return (RecordError, (self.reason, self.detail))  # it crosses process borders when shards are indexed


def required_text(item: Mapping[str, Any], name: str) -> str:
    """Return the non-empty string `item[name]`.

    Raises:
        RecordError: `no_<name>` when absent or empty, `bad_<name>` when not a string.
    """
    value = item.get(name)
    if value is None:
        raise RecordError(f"no_{name}", f"field {name!r} is missing")
    if not isinstance(value, str):
        raise RecordError(f"bad_{name}", f"field {name!r} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise RecordError(f"no_{name}", f"field {name!r} is empty")
    return value


def optional_text(item: Mapping[str, Any], name: str, *, default: str = "") -> str:
    """`item[name]`, or the default when it is absent, null or empty."""
    if item.get(name) in (None, ""):
        return default
    return required_text(item, name)


def interval(value: Any, *, name: str) -> tuple[float, float]:
    """Return (start, end) in seconds, 0 <= start <= end.

    Raises:
        RecordError: `bad_<name>`.
    """
    numbers = value if isinstance(value, (list, tuple)) and len(value) == 2 else ()
    good = len(numbers) == 2 and all(
        isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        for number in numbers
    )
    if not good or not 0 <= numbers[0] <= numbers[1]:
        raise RecordError(f"bad_{name}", f"{name!r} must be [start, end] in seconds, 0 <= start <= end, got {value!r}")
    return float(numbers[0]), float(numbers[1])


def check_times(item: Any, *, seconds: float) -> None:
    """Refuse times that are not in the clip: a model cannot see them, and no answer about the clip can reach them.

    Args:
        item: An item of a record that makes a Sample.
        seconds: Length of its clip; 0 when it has none.

    Raises:
        RecordError: `span_outside`.
    """
    spans = [item["span"]] if item.get("span") is not None else [event[:2] for event in item.get("events") or ()]
    for start, end in spans if seconds > 0 else ():
        if start >= seconds:
            raise RecordError("span_outside", f"[{start:g}, {end:g}] begins after the end of the clip, {seconds:.2f} s")
        if end > seconds + PAST_END:
            raise RecordError(
                "span_outside",
                f"[{start:g}, {end:g}] ends after the end of the clip, {seconds:.2f} s; cut it there if that is meant",
            )


def styled_answer(item: Mapping[str, Any], *, answer: str, style: str) -> str:
    """Return the answer as it is trained: alone (plain), or behind the item's reasoning (think, draft).

    `draft` takes the item's own `draft` where it has one: an imperfect answer that a rejection filter let through, such
    as a span with an IoU above 0.6 (the paper's cold start).

    Reasoning may be absent, as in prompts for reinforcement learning; the index marks such items, and they are
    never drawn for supervised training in these styles.
    """
    if style == "plain":
        return answer
    if style == "draft":
        answer = optional_text(item, "draft", default=answer)
    return f"<think>{optional_text(item, 'think')}</think><answer>{answer}</answer>"


def conversation(item: Mapping[str, Any], *, question: str, answer: str) -> tuple[Turn, ...]:
    """Return the first turn and the item's further `turns`, a list of {"question", "answer"}."""
    further = item.get("turns") or []
    if not isinstance(further, list) or not all(isinstance(turn, Mapping) for turn in further):
        raise RecordError("bad_turns", "'turns' must be a list of objects with question and answer")
    rest = (Turn(question=required_text(turn, "question"), answer=required_text(turn, "answer")) for turn in further)
    return (Turn(question=question, answer=answer), *rest)


def text_sample(task: str, *, question: str = "") -> Callable[..., Sample]:
    """Return what makes a Sample of the fields `answer` and `question`, a task whose answer is a text.

    Args:
        task: its name.
        question: stands in for a question that is missing; empty requires one.
    """

    def make(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
        answer = required_text(item, "answer")
        text = optional_text(item, "question", default=question) if question else required_text(item, "question")
        return Sample(
            key=key,
            task=task,
            turns=conversation(item, question=text, answer=styled_answer(item, answer=answer, style=style)),
            media_key=media_key,
            truth={"text": answer},
            instruction="general" if style != "plain" else "none",
        )

    return make


def suffix(instruction: str, *, wording: str) -> str:
    """Return the suffix without its leading newline; empty for the instruction `none`."""
    if wording not in SUFFIXES:
        raise ValueError(f"wording={wording!r}: choose one of {', '.join(SUFFIXES)}")
    if instruction not in SUFFIXES[wording]:
        raise ValueError(f"instruction={instruction!r}: choose one of {', '.join(SUFFIXES[wording])}")
    return SUFFIXES[wording][instruction]
