"""Tasks: one function per kind of question, from a record's item to a Sample. The only code that knows item fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from arcvideo.tasks.asr import asr
from arcvideo.tasks.caption import caption
from arcvideo.tasks.chapters import chapters
from arcvideo.tasks.fields import RecordError
from arcvideo.tasks.grounding import grounding
from arcvideo.tasks.mcq import mcq
from arcvideo.tasks.qa import qa
from arcvideo.tasks.summary import summary
from arcvideo.types import Sample


class Task(Protocol):
    """A record's item becomes a Sample.

    Raises:
        RecordError: a field is missing or malformed.
    """

    def __call__(self, item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample: ...


TASKS: dict[str, Task] = {
    "asr": asr,
    "caption": caption,
    "chapters": chapters,
    "grounding": grounding,
    "mcq": mcq,
    "qa": qa,
    "summary": summary,
}


def make_sample(item: Any, *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """The Sample of one item of a record, by its `task` field.

    Raises:
        RecordError: the item is no object, its task is unknown, or a field is missing or malformed.
    """
    if not isinstance(item, Mapping):
        raise RecordError("bad_item", f"an item must be an object, got {type(item).__name__}")
    name = item.get("task")
    if not isinstance(name, str) or name not in TASKS:
        raise RecordError("unknown_task", f"task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name](item, key=key, media_key=media_key, style=style)
