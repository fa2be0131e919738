"""Summaries of a whole clip, with its title when there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcvideo.tasks.fields import optional_text, text_sample
from arcvideo.tasks.scoring import text_measures
from arcvideo.tasks.task import Task
from arcvideo.types import Sample

QUESTION = "Describe the video content."
TITLED = "The title of the video is{title}\n" + QUESTION


def _sample(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `answer`, optional `question` (used as it is) or `title` (put in the released wording), `turns`."""
    title = optional_text(item, "title")
    make = text_sample("summary", question=TITLED.format(title=title) if title else QUESTION)
    return make(item, key=key, media_key=media_key, style=style)


SUMMARY = Task(
    name="summary",
    question=QUESTION,
    sample=_sample,
    measures=text_measures("summary"),  # on request: summaries are the longest answers
)
