"""Open questions with a short or long free answer; may have further turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcvideo.tasks.fields import conversation, required_text, styled_answer
from arcvideo.types import Sample


def qa(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `question`, `answer`, optional `turns`."""
    answer = required_text(item, "answer")
    question = required_text(item, "question")
    return Sample(
        key=key,
        task="qa",
        turns=conversation(item, question=question, answer=styled_answer(item, answer=answer, style=style)),
        media_key=media_key,
        truth={"text": answer},
        instruction="general" if style != "plain" else "none",
    )
