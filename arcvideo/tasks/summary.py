"""Summaries of a whole clip, with its title when there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcvideo.tasks.fields import optional_text, text_sample
from arcvideo.tasks.scoring import constant_word_f1, word_f1
from arcvideo.tasks.task import Measure, Score, Task, true_text
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
    measures=(
        Measure(
            name="summary_f1",
            score=lambda text, truth: Score(value=word_f1(text, truth=true_text(truth))),
            chance=lambda items: constant_word_f1([true_text(item.truth) for item in items]),
            on_request=True,  # summaries are the longest answers
        ),
    ),
)
