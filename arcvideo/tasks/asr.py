"""Speech recognition: what is said in the clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcvideo.tasks.fields import conversation, optional_text, required_text, styled_answer
from arcvideo.types import Sample

QUESTION = "Transcribe the speech."


def asr(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `answer` (the transcript), optional `question`."""
    answer = required_text(item, "answer")
    question = optional_text(item, "question", default=QUESTION)
    return Sample(
        key=key,
        task="asr",
        turns=conversation(item, question=question, answer=styled_answer(item, answer=answer, style=style)),
        media_key=media_key,
        truth={"text": answer},
        instruction="general" if style != "plain" else "none",
    )
