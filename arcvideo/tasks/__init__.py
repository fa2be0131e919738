"""Everything about one kind of question in one file: from a record's item to a Sample, and from an answer to its worth.

Nothing outside this room knows the fields of an item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from arcvideo.named import loaded
from arcvideo.tasks.asr import ASR
from arcvideo.tasks.caption import CAPTION
from arcvideo.tasks.chapters import CHAPTERS
from arcvideo.tasks.fields import RecordError, required_text, styled_answer
from arcvideo.tasks.grounding import GROUNDING
from arcvideo.tasks.mcq import MCQ
from arcvideo.tasks.qa import QA
from arcvideo.tasks.summary import SUMMARY
from arcvideo.tasks.task import Task
from arcvideo.types import Sample

TASKS: dict[str, Task] = {task.name: task for task in (ASR, CAPTION, QA, MCQ, GROUNDING, SUMMARY, CHAPTERS)}
"""Name -> task; figures of an evaluation stand in this order, those of other packages last."""
TASKS |= {name: task for name, task in loaded("tasks") if isinstance(task, Task) and task.name == name}

DEFAULT_TASK = QA.name
"""The kind of a question that says none."""


def default_rewards() -> dict[str, float]:
    """Return the default reward of each task that has one, with weight 1: the paper's two."""
    return {task.reward: 1.0 for task in TASKS.values() if task.reward is not None}


def make_sample(item: Any, *, key: str, media_key: str | None, style: str = "plain", media_count: int = 1) -> Sample:
    """Return the Sample of one item of a record, by its `task` field; `media_count` are the media of the record.

    Raises:
        RecordError: the item is no object, its task is unknown, or a field is missing or malformed.
    """
    if not isinstance(item, Mapping):
        raise RecordError("bad_item", f"an item must be an object, got {type(item).__name__}")
    name = item.get("task")
    if not isinstance(name, str) or name not in TASKS:
        raise RecordError("unknown_task", f"task {name!r}: choose one of {', '.join(TASKS)}")
    sample = TASKS[name].sample(item, key=key, media_key=media_key, style=style)
    return sample if media_count == 1 else replace(sample, media_count=media_count)


def make_pair(
    item: Any, *, key: str, media_key: str | None, style: str = "plain", media_count: int = 1
) -> tuple[Sample, Sample]:
    """Return the item's own answer and its `rejected` one, as two samples with the same question.

    `rejected` is a text, taken as it stands in every style, or an object of `answer` and `think`, put together as the
    style says.

    Raises:
        RecordError: as `make_sample`; `no_rejected`, `bad_rejected`, or `bad_turns` for a longer conversation.
    """
    chosen = make_sample(item, key=key, media_key=media_key, style=style, media_count=media_count)
    if len(chosen.turns) > 1:
        raise RecordError("bad_turns", "pairs of answers need a conversation of one turn")
    answer = _rejected(item.get("rejected"), style=style)
    if answer == chosen.turns[0].answer:
        raise RecordError("bad_rejected", "'rejected' equals the item's own answer")
    turn = replace(chosen.turns[0], answer=answer)
    return chosen, replace(chosen, key=f"{key}#rejected", turns=(turn,))


def has_pair(item: Any) -> bool:
    """Return whether an item of a record says what is rejected."""
    return isinstance(item, Mapping) and item.get("rejected") is not None


def _rejected(value: Any, *, style: str) -> str:
    if value is None:
        raise RecordError("no_rejected", "field 'rejected' is missing")
    if isinstance(value, Mapping):
        return styled_answer(value, answer=required_text(value, "answer"), style="think" if style != "plain" else style)
    return required_text({"rejected": value}, "rejected")
