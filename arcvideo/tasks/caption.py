"""Captions: what is shown, including text on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcvideo.tasks.fields import conversation, optional_text, required_text, styled_answer
from arcvideo.types import Sample

QUESTION = "Describe the video content."


def caption(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `answer` (the caption), optional `question`."""
    answer = required_text(item, "answer")
    question = optional_text(item, "question", default=QUESTION)
    return Sample(
        key=key,
        task="caption",
        turns=conversation(item, question=question, answer=styled_answer(item, answer=answer, style=style)),
        media_key=media_key,
        truth={"text": answer},
        instruction="general" if style != "plain" else "none",
    )
