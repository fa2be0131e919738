"""Temporal grounding: when something happens, as a time range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcvideo.tasks.answers import clock_span
from arcvideo.tasks.fields import RecordError, conversation, interval, required_text, styled_answer
from arcvideo.types import Sample


def grounding(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `question`, `span` ([start, end] in seconds, start before end)."""
    question = required_text(item, "question")
    if item.get("span") is None:
        raise RecordError("no_answer", "field 'span' is missing")
    span = interval(item["span"], name="span")
    if span[0] == span[1]:
        raise RecordError("empty_span", f"'span' {list(span)} has no length, so no answer can overlap it")
    return Sample(
        key=key,
        task="grounding",
        turns=conversation(item, question=question, answer=styled_answer(item, answer=clock_span(span), style=style)),
        media_key=media_key,
        truth={"span": span},
        instruction="grounding" if style != "plain" else "none",
    )
