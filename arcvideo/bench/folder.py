"""What lies in the folder of a benchmark: annotation files, media, subtitles; and what is missing there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from arcvideo.shards.members import AUDIO, VIDEO
from arcvideo.shards.text import delimited_rows, json_of, read_text, whole
from arcvideo.shards.text import rows as text_rows
from arcvideo.tasks import RecordError

_KINDS = ("mp4", "mkv", "webm", "avi", "mov", *sorted((VIDEO | AUDIO) - {"mp4", "mkv", "webm", "avi", "mov"}))
_TAG = re.compile(r"<[^<>]{0,200}>|\{\\[^{}]{0,80}\}")
_CUE = re.compile(r"\s*[\d:.,]+\s*-->\s*[\d:.,]+")


def wanted_file(folder: Path, *names: str, layout: str) -> Path:
    """Return the first of these files that the folder has.

    Args:
        folder: of the benchmark.
        names: relative paths, the published one first.
        layout: what the folder should hold, for the message.

    Raises:
        ValueError: none is there.
    """
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder}: {_one_of(names)} is missing; wanted: {layout}")
    return path


def wanted_folder(folder: Path, *names: str, layout: str) -> Path:
    """Return the first of these folders that the folder has; as `wanted_file`."""
    path = next((folder / name for name in names if (folder / name).is_dir()), None)
    if path is None:
        raise ValueError(f"{folder}: folder {_one_of(names)} is missing; wanted: {layout}")
    return path


def _one_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (or {', '.join(names[1:])})"


def media_file(folders: Path | Iterable[Path], name: Any) -> Path:
    """Return the media file that an annotation names, with or without its type.

    Args:
        folders: where it may lie.
        name: relative path; a name without a known type is tried with each.

    Raises:
        RecordError: `no_media`, `empty_media`, or `unsafe_name` for a name that leaves the folders.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise RecordError("no_media", f"no media file is named, got {name!r}")
    whole(name)
    places = [folders] if isinstance(folders, Path) else list(folders)
    for place in places:
        path = Path(os.path.normpath(place / name))
        if not path.is_relative_to(os.path.normpath(place)):
            raise RecordError("unsafe_name", f"{name!r} lies outside of {place}")
        for spelling in _spellings(path):
            size = _size(spelling)
            if size:
                return spelling
            if size == 0:
                raise RecordError("empty_media", f"{spelling}: the file is empty")
    raise RecordError("no_media", f"{places[0] / name}: no such file")


def _spellings(path: Path) -> Iterator[Path]:
    yield path
    if path.suffix.lower().lstrip(".") not in VIDEO | AUDIO:
        base = str(path)
    else:  # a type that differs from what the annotation says: re-packed or converted copies
        base = str(path.with_suffix(""))
    yield from (Path(f"{base}.{kind}") for kind in _KINDS)
    yield from (Path(f"{base}.{kind.upper()}") for kind in _KINDS[:5])


def _size(path: Path) -> int | None:
    """Return bytes of a file; None when there is none, also when no file can have that name."""
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        return None


def json_file(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: it cannot be read; one line.
    """
    try:
        return json_of(read_text(path), once=False)
    except RecordError as error:
        raise ValueError(f"{path}: is not JSON: {error.detail}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def json_list(path: Path) -> list[Any]:
    """Return the list that a JSON file holds; as `json_file`."""
    content = json_file(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of questions, found {_kind(content)}")
    return content


def json_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; as `json_file`."""
    content = json_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected one object with a key for each video, found {_kind(content)}")
    return content


def _kind(value: Any) -> str:
    names = ((dict, "an object"), (list, "a list"), (str, "a text"))
    return next((name for kind, name in names if isinstance(value, kind)), json.dumps(value)[:40])


def table_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) of a JSON list, JSON lines, CSV, TSV or Parquet file.

    A line that is no JSON is yielded as the RecordError that says so, so that one bad line does not hide the others.

    Raises:
        ValueError: the file cannot be read at all; one line.
    """
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            yield from _parquet(path)
        elif kind in (".csv", ".tsv"):
            for number, row in delimited_rows(path, delimiter="\t" if kind == ".tsv" else ","):
                yield f"line {number}", row
        elif kind == ".json":
            yield from ((f"entry {number}", row) for number, row in enumerate(json_list(path)))
        else:
            yield from _json_lines(path)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in text_rows(path):
        if line.strip():
            try:
                yield f"line {number}", json_of(whole(line))
            except RecordError as error:
                yield f"line {number}", error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read after row {number}: {' '.join(str(error).split())}") from None


def subtitle_text(path: Path) -> str | None:
    """Return what the subtitles of an SRT or WebVTT file say, a line each; None when there is no such file or no word.

    Raises:
        RecordError: `broken_text`.
    """
    if not _size(path):
        return None
    lines = [_TAG.sub("", line).strip() for line in read_text(path).splitlines()]
    cues = {number for number, line in enumerate(lines) if _CUE.match(line)}
    numbers = {place - 1 for place in cues if lines[place - 1 : place] and lines[place - 1].isdecimal()}
    spoken = [line for place, line in enumerate(lines) if line and place not in cues | numbers and line != "WEBVTT"]
    return "\n".join(spoken) or None
