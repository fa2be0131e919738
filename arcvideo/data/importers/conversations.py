"""Conversations: ARC's own rows and ShareGPT files.

ARC: JSON lines {"id", "video", "conversations": [{"from": "human"|"gpt", "value"}, ...]} beside a folder of videos and,
for videos without sound, a folder of sound files with the same base names. An ARC meta file names
several such data sets: {name: {"root", "audio_root", "annotation", "repeat_time"}}.

ShareGPT: a JSON list or JSON lines of the same shape in all its dialects (LLaMA-Factory, ms-swift, LLaVA-Video,
OpenAI's `messages` with texts or lists of parts): `dialects.py` reads a row. A row may name several videos, pictures
and sounds; a picture and a sound alone are one clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcvideo.data.importers.dialects import Named, Talk, read_talk
from arcvideo.data.importers.drafts import (
    Drafting,
    Drafts,
    ImportReport,
    ImportRequest,
    json_rows,
    judged,
    media_key,
    media_path,
    whole_json,
)
from arcvideo.data.importers.sources import Cell, Medium, Stills, is_there
from arcvideo.render import MEDIA_TAG
from arcvideo.tasks import RecordError


def import_arc(request: ImportRequest, *, report: ImportReport) -> Drafts:
    """Return the records of ARC annotation files. Rows about the same video become items of one record.

    Raises:
        ValueError: a file or folder is missing, or the task cannot hold conversations.
    """
    return _import(request, report=report, needs_media=True)


def import_sharegpt(request: ImportRequest, *, report: ImportReport) -> Drafts:
    """Return the records of ShareGPT files. Rows without media become text-only records.

    Raises:
        ValueError: a file or folder is missing, or the task cannot hold conversations.
    """
    return _import(request, report=report, needs_media=False)


_MOST_REPEATS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class MetaEntry:
    """One data set of an ARC meta file."""

    name: str
    request: ImportRequest
    repeat: float
    """The reference takes the first fraction below 1, and repeats the rows above."""


def meta_entries(path: Path, *, task: str, encoding: str | None = None) -> list[MetaEntry]:
    """Return the data sets of an ARC meta file; relative paths are looked up beside the file, then where we are.

    Raises:
        ValueError: the file does not have that form.
    """
    content = whole_json(path, encoding=encoding)
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ValueError(f'{path}: an ARC meta file is {{name: {{"root", "annotation", ...}}}}')

    def located(name: str, field: str) -> Path | None:
        value = content[name].get(field)
        if value in (None, ""):
            return None
        beside = path.parent / str(value)
        return beside if beside.exists() else Path(str(value))

    entries = []
    for name, entry in content.items():
        annotation, root, repeat = located(name, "annotation"), located(name, "root"), entry.get("repeat_time", 1)
        if not name or Path(name).name != name or name == ".." or not name.isprintable():  # its shards are called so
            raise ValueError(f"{path}: {name[:80]!a} is no name for shards; take one without slashes")
        if annotation is None or root is None or type(repeat) not in (int, float) or not 0 < repeat <= _MOST_REPEATS:
            raise ValueError(f"{path}: {name} needs annotation and root, and a repeat_time above 0")
        request = ImportRequest(
            annotations=(annotation,), videos=root, audio=located(name, "audio_root"), task=task, encoding=encoding
        )
        entries.append(MetaEntry(name=name, request=request, repeat=float(repeat)))
    return entries


def _import(request: ImportRequest, *, report: ImportReport, needs_media: bool) -> Drafts:
    if request.task not in ("summary", "qa"):
        raise ValueError(f"--task {request.task}: conversations become items of the task summary or qa")
    request.media_folder()
    drafting = Drafting(report=report, audio=request.audio)
    for place, row in json_rows(request, report=report):
        label = str(row.get("id", place))
        with judged(label, report=report, place=place):
            talk = read_talk(row)
            if not talk.media and needs_media:
                raise RecordError("no_media", "field 'video' is missing")
            media = [_medium(name, request=request) for name in talk.media]
            sound = None if talk.sound is None else _medium(talk.sound, request=request)
            for path in (*media[1:], *([] if sound is None else [sound])):
                if not is_there(path):
                    raise RecordError("no_media", f"{path}: no such file")
            item = {**conversation_item(talk, task=request.task), "id": row.get("id", place)}
            known_as = _known_as(talk, media, label=label, request=request)
            drafting.add(
                item, label=label, name=known_as, media=media[0] if media else None, sound=sound, more=media[1:]
            )
            report.ignore(talk.ignored)
            report.loose_tags += MEDIA_TAG in item["question"] and f"{MEDIA_TAG}\n" not in item["question"]
    return drafting.drafts()


def _medium(named: Named, *, request: ImportRequest) -> Medium:
    """Return the file of a medium, or the frames of a video."""
    if isinstance(named, Cell):
        return named
    if isinstance(named, str):
        return media_path(named, request=request)
    paths = [media_path(name, request=request) for name in named.names]
    missing = [path for path in paths if not is_there(path)]
    if missing:
        raise RecordError("no_media", f"{missing[0]}: no such file")
    return Stills(paths=tuple(paths), times=named.times)


def _known_as(talk: Talk, media: Sequence[Medium], *, label: str, request: ImportRequest) -> str:
    """Return what the record is called: as its first file, or as the row where it is none of a folder or one of
    several.
    """
    if not talk.media:
        return f"text-{label}"
    if isinstance(media[0], Path) and len(media) == 1:
        return media_key(media[0], request=request)
    return f"row-{label}"


def conversation_item(talk: Talk, *, task: str) -> dict[str, Any]:
    """Return the item of alternating questions and answers; a system prompt is put in front of the first question."""
    first, *further = talk.pairs
    question = f"{talk.system}\n{first[0]}" if talk.system else first[0]
    item: dict[str, Any] = {"task": task, "question": question, "answer": first[1]}
    if further:
        item["turns"] = [{"question": question, "answer": answer} for question, answer in further]
    return item
