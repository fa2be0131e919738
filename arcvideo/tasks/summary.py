"""Summaries of a whole clip, with its title when there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcvideo.tasks.fields import conversation, optional_text, required_text, styled_answer
from arcvideo.types import Sample

QUESTION = "Describe the video content."
TITLED = "The title of the video is{title}\n" + QUESTION


def summary(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `answer`, optional `question` (used as it is) or `title` (put in the released wording), `turns`."""
    answer = required_text(item, "answer")
    title = optional_text(item, "title")
    question = optional_text(item, "question", default=TITLED.format(title=title) if title else QUESTION)
    return Sample(
        key=key,
        task="summary",
        turns=conversation(item, question=question, answer=styled_answer(item, answer=answer, style=style)),
        media_key=media_key,
        truth={"text": answer},
        instruction="general" if style != "plain" else "none",
    )
