"""Tables: CSV, TSV, JSON, JSON lines, Parquet and Arrow with one question, caption or time span a row.

Which column says what is a mapping, given with `--map` or known for a public set (`TABLES`: a line each). Audio and
Video columns of Hugging Face datasets hold the file itself or its path.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from arcvideo.data.importers.columnar import ARROW, PARQUET
from arcvideo.data.importers.drafts import (
    Drafting,
    Drafts,
    ImportReport,
    ImportRequest,
    annotated_rows,
    existing,
    found_media,
    judged,
    key_of,
    media_path,
)
from arcvideo.data.importers.sources import Cell, Medium
from arcvideo.shards.text import delimited_rows, whole
from arcvideo.tasks import RecordError
from arcvideo.tasks.fields import required_text

FIELDS = (
    "video",
    "audio",
    "id",
    "task",
    "question",
    "options",
    "answer",
    "think",
    "caption",
    "transcript",
    "start",
    "end",
)
"""What a column may be mapped to."""
Columns = dict[str, str | tuple[str, ...]]
"""Field -> column, or the columns that hold an option each."""
_GROUNDING = "When does this happen in the video: {}"
_GUESSES = {
    "video": ("video", "media", "file", "path", "video_path", "file_name", "filename", "image", "video_id", "videoid"),
    "audio": ("audio", "audio_path"),
    "id": ("id", "question_id"),
    "question": ("question", "q", "problem", "query", "prompt"),
    "options": ("options", "choices", "candidates"),
    "answer": ("answer", "a", "response", "solution"),
    "caption": ("caption", "text", "description"),
    "transcript": ("transcript", "transcription", "sentence"),
    "start": ("start", "start_time", "begin"),
    "end": ("end", "end_time", "stop"),
}
"""Names that columns have when nobody says which is which."""
_SPREAD = re.compile(r"(?:(?:option|choice|candidate|opt)s?[ _.-]?)?([a-h1-8])", re.IGNORECASE)
"""Name of a column that holds one option of several: `A`, `option_b`, `Choice 3`."""
_SAME_COLUMNS = (*PARQUET, *ARROW, ".csv", ".tsv")
"""Types of files whose rows all have the same columns."""
_MOST_MAPPINGS = 1000
"""Sets of columns of one file that are remembered; rows of JSON may each have their own."""
TABLES: dict[str, dict[str, str]] = {
    "video-chatgpt": {"video": "video_id", "question": "q", "answer": "a"},
    "video-mme": {"video": "videoID", "question": "question", "options": "options", "answer": "answer"},
    "daily-omni": {"video": "video_id", "question": "Question", "options": "Choice", "answer": "Answer"},
}
"""Public set -> its columns."""


def import_table(request: ImportRequest, *, report: ImportReport, columns: Mapping[str, str] | None = None) -> Drafts:
    """Return one item of each row, by the columns it has: options -> mcq, start and end -> grounding, a question -> qa,
    a caption -> caption, a transcript -> asr.

    Args:
        request: its `columns` go before `columns`.
        report: what becomes of the rows.
        columns: field -> column of a known set; None guesses the columns that `request` does not name.

    Raises:
        ValueError: a file or folder is missing, or a column that is named.
    """
    unknown = set(request.columns) - set(FIELDS)
    if unknown:
        raise ValueError(f"--map {sorted(unknown)[0]}=...: no such field; there are {', '.join(FIELDS)}")
    request.media_folder()
    drafting = Drafting(report=report, audio=request.audio)
    for path in existing(request.annotations):
        _add_rows(path, drafting=drafting, request=request, columns=columns)
    return drafting.drafts()


def _add_rows(path: Path, *, drafting: Drafting, request: ImportRequest, columns: Mapping[str, str] | None) -> None:
    """Keep the rows of a file; those of JSON name their columns each for itself.

    Raises:
        ValueError: no row has a column that is named, or one that names media.
    """
    given = {**(columns or {}), **request.columns}
    missing, mappings, usable = dict(given), dict[tuple[str, ...], Columns](), False
    first: Sequence[str] = ()
    for place, row in _rows(path, request=request, report=drafting.report):
        names = tuple(row)
        first = first or names
        missing = {field: column for field, column in missing.items() if column not in row}
        if missing and path.suffix.lower() in _SAME_COLUMNS:
            break
        if names not in mappings:
            if len(mappings) == _MOST_MAPPINGS:
                mappings.clear()
            mappings[names] = _mapping(names, given=given, guess=columns is None)
        mapping = mappings[names]
        cells = {field: _value(row, column) for field, column in mapping.items()}
        if not {"video", "audio"} & cells.keys():
            drafting.report.refuse(place, reason="no_media", detail=f"{place}: {_which(names)}")
            continue
        usable, label = True, str(cells.get("id") or place)
        with judged(label, report=drafting.report, place=place):
            add_row(cells, label=label, drafting=drafting, request=request)
            _note_ignored(row, mapping=mapping, report=drafting.report)
    for field, column in missing.items() if first else ():
        raise ValueError(f"{path}: no column {column!r} for {field}; there are {', '.join(first)}; see --map")
    if first and not usable:
        raise ValueError(f"{path}: {_which(first)}")


def table_importers() -> dict[str, Callable[..., Drafts]]:
    """Format -> reader, of `table` and of the sets whose columns are known."""
    return {"table": import_table} | {name: partial(import_table, columns=map_) for name, map_ in TABLES.items()}


def add_row(cells: Mapping[str, Any], *, label: str, drafting: Drafting, request: ImportRequest) -> None:
    """Keep the item of a row.

    Args:
        cells: field of FIELDS -> what the row has there.
        label: of the row.
        drafting: keeps it.
        request: says where media lie.

    Raises:
        RecordError: the row cannot be used.
    """
    media = _media(cells.get("video"), request=request)
    sound = _media(cells.get("audio"), request=request)
    main, beside = (media, sound) if media is not None else (sound, None)
    if main is None:
        raise RecordError("no_media", "the row names no media file")
    name = key_of(main, request=request)
    drafting.add({**_item(cells), "id": label}, label=label, name=name, media=main, sound=beside)


def _item(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return the item of a row, of the task that its columns are for."""
    has = {field for field in cells if cells[field] not in (None, "", [])}
    extra = {field: _words(cells[field]) for field in ("think",) if field in has}
    task = str(cells["task"]) if "task" in has else ""
    _check_whole(cells, has=has, task=task)
    if task in ("", "mcq") and "options" in has:
        answer = _words(cells.get("answer"))
        return {"task": "mcq", "question": _words(cells.get("question")), "options": _options(cells["options"]),
                "answer": answer, **extra}  # fmt: skip
    if task in ("", "grounding") and {"start", "end"} <= has:
        caption = required_text({"caption": _words(cells.get("caption"))}, "caption") if "question" not in has else ""
        about = _words(cells["question"]) if "question" in has else _GROUNDING.format(caption)
        return {"task": "grounding", "question": about, "span": [_seconds(cells["start"]), _seconds(cells["end"])],
                **extra}  # fmt: skip
    if task in ("", "qa") and "question" in has:
        return {"task": "qa", "question": _words(cells["question"]), "answer": _words(cells.get("answer")), **extra}
    for name, field in (("caption", "caption"), ("asr", "transcript"), ("summary", "caption")):
        if task in ("", name) and field in has:
            return {"task": name, "answer": _words(cells[field]), **extra}
    raise RecordError("no_answer", f"nothing to answer; the row has {sorted(has)}: say which column is what, --map")


def _check_whole(cells: Mapping[str, Any], *, has: set[str], task: str) -> None:
    """Complain about a row that lacks what would make it an item of another task, and of another meaning.

    Raises:
        RecordError: `bad_options`: the letter of an option without options. `bad_span`: one of `start` and `end`.
    """
    answer = _words(cells.get("answer"))
    is_letter = isinstance(answer, str) and re.fullmatch(r"\W*[A-H]\W*", answer) is not None
    if not task and "options" in cells and "options" not in has and is_letter:
        raise RecordError("bad_options", f"the answer is the letter {answer[:20]!r}, and there are no options")
    if len({"start", "end"} & has) == 1 and {"start", "end"} <= cells.keys():
        raise RecordError("bad_span", "a row needs both of start and end, or none")


def _options(value: Any) -> Any:
    """Return a list of texts: as it is, or as JSON or a list of lines in a cell of a table."""
    if isinstance(value, str):
        try:
            read = json.loads(value)
        except ValueError:
            read = [line.strip() for line in value.split("\n") if line.strip()]
        return read
    return value


def _words(value: Any) -> Any:
    """Return the text of a cell; numbers count as what they look like, everything else is judged by the task.

    Raises:
        RecordError: `bad_number`: infinite, or none. `broken_text`.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError("bad_number", f"{value} is no text and no number")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return whole(value) if isinstance(value, str) else value


def _seconds(value: Any) -> Any:
    """Return seconds of a number, a text of one, or `HH:MM:SS.f`."""
    if isinstance(value, str):
        parts = value.strip().split(":")
        if len(parts) <= 3 and all(re.fullmatch(r"\d+(\.\d+)?", part) for part in parts):
            return sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))
        raise RecordError("bad_span", f"{value!r} is no number of seconds")
    return value


def _media(value: Any, *, request: ImportRequest) -> Medium | None:
    """Return the file that a cell names or holds; a name without a type is looked for."""
    if isinstance(value, Cell):
        return value
    if value in (None, "", []):
        return None
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, Mapping):
        value = value.get("path")
    path = media_path(value, request=request)
    return path if os.path.isfile(path) or path.suffix else found_media(str(value), request=request)


def _mapping(row: Sequence[str], *, given: Mapping[str, str], guess: bool) -> Columns:
    """Field -> column, or columns that hold an option each, of a row with these columns."""
    mapping: Columns = {field: column for field, column in given.items() if column in row}
    lower = {column.strip().lower(): column for column in row}
    spread = _spread(row) if guess and "options" not in given else ()
    if spread and not set(_GUESSES["options"]) & lower.keys():
        mapping["options"] = spread
        lower = {name: column for name, column in lower.items() if column not in spread}
    for field, names in (_GUESSES if guess else {}).items():
        guessed = next((lower[name] for name in names if name in lower and lower[name] not in mapping.values()), None)
        if field not in given and guessed is not None:
            mapping[field] = guessed
    return mapping


def _spread(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that hold an option each, at least A and B or 1 and 2, in order; none where there are none."""
    found = {match[1].lower(): column for column in columns if (match := _SPREAD.fullmatch(column.strip()))}
    for marks in ("abcdefgh", "12345678"):
        run = list(takewhile(found.__contains__, marks))
        if len(run) > 1:
            return tuple(found[mark] for mark in run)
    return ()


def _value(row: Mapping[str, Any], column: str | tuple[str, ...]) -> Any:
    """Return what a row has in a column; of several the list, without empty ones at its end."""
    if isinstance(column, str):
        return row.get(column)
    values = [_words(row.get(name)) for name in column]
    while values and values[-1] in (None, ""):
        values.pop()
    return ["" if value is None else value for value in values]


def _note_ignored(row: Mapping[str, Any], *, mapping: Columns, report: ImportReport) -> None:
    """Count the columns that a row has and nothing was made of."""
    used = {name for column in mapping.values() for name in ((column,) if isinstance(column, str) else column)}
    report.ignore(name for name, value in row.items() if name not in used and value not in (None, "", []))


def _which(columns: Sequence[str]) -> str:
    there = f"there are {', '.join(columns)[:500]}"
    return f"which column names the media file? {there}: --map video=COLUMN,question=COLUMN"


def _rows(path: Path, *, request: ImportRequest, report: ImportReport) -> Iterator[tuple[str, Mapping[str, Any]]]:
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        delimiter = "\t" if kind == ".tsv" else ","
        for number, cells in delimited_rows(path, encoding=request.encoding, delimiter=delimiter):
            report.rows += 1
            if isinstance(cells, RecordError):
                report.refuse(f"line {number}", reason=cells.reason, detail=cells.detail)
            else:
                yield f"line {number}", cells
    else:
        yield from annotated_rows(path, request=request, report=report)
