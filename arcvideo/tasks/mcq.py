"""Multiple choice: options A, B, ... and the letter of the right one."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from arcvideo.tasks.fields import RecordError, conversation, required_text, styled_answer
from arcvideo.types import Sample


def mcq(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `question`, `options` (2 to 26 texts), `answer` (a letter).

    `draft`, an object with `options` and `answer`, takes their place in the style of that name.
    """
    if style == "draft":
        item = {**item, **_draft(item.get("draft"))}
    answer = required_text(item, "answer").strip().upper()
    question = required_text(item, "question")
    options = _options(item.get("options"))
    letters = ascii_uppercase[: len(options)]
    if len(answer) != 1 or answer not in letters:
        raise RecordError("bad_answer", f"the answer must be one of the letters {letters}, got {item['answer']!r}")
    listed = "\n".join(f"{letter}.{option}" for letter, option in zip(letters, options, strict=True))
    return Sample(
        key=key,
        task="mcq",
        turns=conversation(
            item, question=f"{question}\n{listed}", answer=styled_answer(item, answer=answer, style=style)
        ),
        media_key=media_key,
        truth={"letter": answer, "options": options},
        instruction="mcq" if style != "plain" else "none",
    )


def _draft(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or set(value) != {"options", "answer"}:
        raise RecordError(
            "bad_draft", f"'draft' of a multiple choice must be an object of options and answer: {value!r}"
        )
    return {**value, "draft": None}


def _options(value: Any) -> tuple[str, ...]:
    good = isinstance(value, list) and all(isinstance(option, str) and option.strip() for option in value)
    if not good or not 2 <= len(value) <= len(ascii_uppercase):
        raise RecordError("bad_options", f"'options' must be a list of 2 to 26 non-empty strings, got {value!r}")
    if len({option.strip() for option in value}) < len(value):
        raise RecordError("bad_options", f"'options' repeats a text, so the right letter is ambiguous: {value!r}")
    return tuple(value)
