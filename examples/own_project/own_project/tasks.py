"""Counting: how many of something there are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from arcvideo.tasks.answers import Reading, one_answer
from arcvideo.tasks.fields import RecordError, conversation, required_text, styled_answer
from arcvideo.tasks.task import Measure, Score, Task, known
from arcvideo.types import Sample


def _sample(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Return the sample of an item with `question` and `count`, a whole number."""
    count = item.get("count")
    if not isinstance(count, int):
        raise RecordError("bad_count", f"'count' must be a whole number, got {count!r}")
    return Sample(
        key=key,
        task="counting",
        turns=conversation(
            item, question=required_text(item, "question"), answer=styled_answer(item, answer=str(count), style=style)
        ),
        media_key=media_key,
        truth={"count": count},
        instruction="general" if style != "plain" else "none",
    )


def _read(text: str, truth: Mapping[str, Any]) -> Reading[int]:
    answer = one_answer(text)
    if answer.value is None:
        return Reading(problem=answer.problem)
    found = {int(number) for number in re.findall(r"\d+", answer.value)}
    return Reading(value=found.pop()) if len(found) == 1 else Reading(problem=f"{len(found)} numbers")


def _right(text: str, truth: Mapping[str, Any]) -> Score:
    return Score(value=float(_read(text, truth).value == known(truth, "count")))


def _chance(items: Any) -> float:
    """Return what always giving the most frequent count reaches."""
    return Counter(item.truth["count"] for item in items).most_common(1)[0][1] / len(items)


COUNTING = Task(
    name="counting",
    sample=_sample,
    read=_read,
    compared=lambda truth: known(truth, "count"),
    rewards={"counting_accuracy": lambda said, true, seconds: float(said == true)},
    measures=(Measure(name="counting_accuracy", score=_right, chance=_chance),),
)
