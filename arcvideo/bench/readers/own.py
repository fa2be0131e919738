"""Questions of your own about your own clips: one JSON line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import media_file, table_rows
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Numbers, Questions, entry, text
from arcvideo.bench.spans import number
from arcvideo.tasks import RecordError

LAYOUT = "questions.jsonl (or file=NAME) beside the clips that it names (or videos=FOLDER)"
VIDEO = "video"
_OURS = (VIDEO, "id", "window", "subtitles")
"""Fields of a line that are not the task's."""


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: video, and those of an item of a record (docs/data-format.md); id, task, tags, window may be left out."""
    name = options.get("file", "questions.jsonl")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder}: {name} is missing; wanted: {LAYOUT}")
    videos = folder / options.get("videos", ".")
    if not videos.is_dir():
        raise ValueError(f"{folder}: folder {options['videos']} is missing; wanted: {LAYOUT}")
    questions = Questions(name=f"own-{path.stem}")

    def make(ident: str, row: Any) -> BenchItem:
        row = entry(row)
        task = task_of(row)
        if task == "mcq" and not row.get("options"):
            raise RecordError("no_options", "the question has no options")
        clip = media_file(videos, row.get(VIDEO))
        fields = {key: value for key, value in row.items() if key not in _OURS} | {"task": task}
        about = row.get("tags") or []
        if not isinstance(about, list):
            raise RecordError("bad_tags", f"'tags' must be a list of texts, got {about!r}")
        return BenchItem(
            id=ident,
            clip=clip,
            task=task,
            fields=fields,
            tags=tuple(map(str, about)),
            subtitles=text(row, "subtitles") if row.get("subtitles") else None,
            window=_window(row.get("window")),
        )

    questions.read(named_rows(path), make)
    return questions.bench(source=str(path), folder=folder)


def named_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (id, row) of every line; the video and its place among the video's lines for those without an id.

    Raises:
        ValueError: the file cannot be read.
    """
    numbered = Numbers()
    for place, row in table_rows(path):
        own = row.get("id") if isinstance(row, dict) else None
        video = row.get(VIDEO) if isinstance(row, dict) else None
        yield str(own) if isinstance(own, (str, int)) else numbered(video, place), row


def task_of(row: Mapping[str, Any]) -> str:
    """Return the task of a line: what it says, or what its fields are for.

    Raises:
        RecordError: `no_task`.
    """
    if row.get("task") is not None:
        return text(row, "task")
    for field, task in (("options", "mcq"), ("span", "grounding"), ("events", "chapters"), ("question", "qa")):
        if row.get(field) is not None:
            return task
    raise RecordError("no_task", "neither a task nor options, a span, events or a question")


def _window(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise RecordError("bad_window", f"'window' must be [start, end] in seconds, got {value!r}")
    start, end = number(value[0], name="window"), number(value[1], name="window")
    if not 0 <= start < end:
        raise RecordError("bad_window", f"'window' must be [start, end] in seconds, 0 <= start < end, got {value!r}")
    return start, end


OWN = Reader(
    read=_read,
    metrics=("mcq_accuracy", "grounding_miou"),
    layout=LAYOUT,
    options={"file": "JSON lines, JSON, CSV, TSV or Parquet in the folder", "videos": "folder of the clips in it"},
)
