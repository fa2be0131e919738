"""Chapters: all events of a clip in order, each with its time range and one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from arcvideo.tasks.answers import answer_text
from arcvideo.tasks.fields import RecordError, conversation, interval, optional_text, styled_answer
from arcvideo.tasks.scoring import text_measures
from arcvideo.tasks.spans import clock_span
from arcvideo.tasks.task import Task, told_times
from arcvideo.types import Sample

QUESTION = "Localize video chapters with temporal boundaries and the corresponding sentence description."


def _sample(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `events` ([[start, end, text], ...] in seconds), optional `question`."""
    events = [_event(event) for event in _listed(item.get("events"))]
    answer = "\n".join(f"{clock_span((start, end))} {text}" for start, end, text in events)
    question = optional_text(item, "question", default=QUESTION)
    return Sample(
        key=key,
        task="chapters",
        turns=conversation(item, question=question, answer=styled_answer(item, answer=answer, style=style)),
        media_key=media_key,
        truth={"text": answer, "events": tuple(events)},
        instruction="general" if style != "plain" else "none",
    )


def _listed(value: Any) -> list[Any]:
    if value in (None, []):
        raise RecordError("no_answer", "field 'events' is missing or empty")
    if not isinstance(value, list):
        raise RecordError("bad_events", f"'events' must be a list of [start, end, text], got {value!r}")
    return value


def _event(value: Any) -> tuple[float, float, str]:
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], str) or not value[2].strip():
        raise RecordError("bad_events", f"each event must be [start, end, text], got {value!r}")
    start, end = interval(value[:2], name="events")
    return start, end, value[2]


def _tell(text: str) -> list[str]:
    """Return the range before each sentence; numbers in the sentence are none of its times."""
    ranges = [re.match(r"\s*[\d:.]+\s*-\s*[\d:.]+(?=\s)", line) for line in answer_text(text).splitlines()]
    return [time for line in ranges if line for time in told_times(line[0])]


CHAPTERS = Task(name="chapters", question=QUESTION, sample=_sample, tell=_tell, measures=text_measures("chapters"))
