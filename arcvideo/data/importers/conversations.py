"""Conversations: ARC's own rows and ShareGPT files.

ARC: JSON lines {"id", "video", "conversations": [{"from": "human"|"gpt", "value"}, ...]} beside a folder of videos and,
for videos without sound, a folder of sound files with the same base names (spec 3.5 and 6). An ARC meta file names
several such data sets: {name: {"root", "audio_root", "annotation", "repeat_time"}} (spec 4.3).

ShareGPT: a JSON list or JSON lines of the same shape, with `video(s)`, `image(s)` or `audio(s)` naming at most one
file, or none, and a possible system turn; OpenAI's `messages` with `role` and `content` are read alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcvideo.data.importers.drafts import (
    Draft,
    Drafting,
    ImportReport,
    ImportRequest,
    json_rows,
    media_path,
    whole_json,
)
from arcvideo.render import MEDIA_TAG
from arcvideo.tasks import RecordError

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
_MEDIA_FIELDS = ("video", "videos", "image", "images", "audio", "audios")


def import_arc(request: ImportRequest, *, report: ImportReport) -> Iterator[Draft]:
    """The records of ARC annotation files. Rows about the same video become items of one record.

    Raises:
        ValueError: a file or folder is missing, or the task cannot hold conversations.
    """
    folder = request.media_folder()
    return _import(request, report=report, folder=folder, needs_media=True)


def import_sharegpt(request: ImportRequest, *, report: ImportReport) -> Iterator[Draft]:
    """The records of ShareGPT files. Rows without media become text-only records.

    Raises:
        ValueError: a file or folder is missing, or the task cannot hold conversations.
    """
    folder = request.media_folder()
    return _import(request, report=report, folder=folder, needs_media=False)


@dataclass(frozen=True, kw_only=True)
class MetaEntry:
    """One data set of an ARC meta file."""

    name: str
    request: ImportRequest
    repeat: float
    """The reference takes the first fraction below 1, and repeats the rows above."""


def meta_entries(path: Path, *, task: str) -> list[MetaEntry]:
    """The data sets of an ARC meta file; relative paths are looked up beside the file, then where we are.

    Raises:
        ValueError: the file does not have that form.
    """
    content = whole_json(path)
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
        if annotation is None or root is None or not isinstance(repeat, (int, float)) or repeat <= 0:
            raise ValueError(f"{path}: {name} needs annotation and root, and a repeat_time above 0")
        request = ImportRequest(annotations=(annotation,), videos=root, audio=located(name, "audio_root"), task=task)
        entries.append(MetaEntry(name=name, request=request, repeat=float(repeat)))
    return entries


def _import(request: ImportRequest, *, report: ImportReport, folder: Path, needs_media: bool) -> Iterator[Draft]:
    if request.task not in ("summary", "qa"):
        raise ValueError(f"--task {request.task}: conversations become items of the task summary or qa")
    drafting = Drafting(report=report, audio=request.audio)
    for place, row in json_rows(request.annotations, report=report):
        label = str(row.get("id", place))
        try:
            name = _named_media(row)
            if name is None and needs_media:
                raise RecordError("no_media", "field 'video' is missing")
            media = None if name is None else media_path(name, folder=folder)
            item = conversation_item(row, task=request.task)
            known_as = f"text-{label}" if name is None else str(Path(name).with_suffix(""))
            drafting.add({**item, "id": row.get("id", place)}, label=label, name=known_as, media=media)
        except RecordError as error:
            report.refuse(label, reason=error.reason, detail=f"{place}: {error.detail}")
            continue
        report.loose_tags += MEDIA_TAG in item["question"] and f"{MEDIA_TAG}\n" not in item["question"]
    return drafting.drafts()


def _named_media(row: Mapping[str, Any]) -> str | None:
    """The one media file of a row."""
    named: list[Any] = []
    for field in _MEDIA_FIELDS:
        value = row.get(field)
        named += value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(name, str) and name for name in named):
        raise RecordError("no_media", f"media must be file names, got {named}")
    if len(named) > 1:
        raise RecordError("several_media", f"a record holds one clip, the row names {named}")
    return named[0] if named else None


def conversation_item(row: Mapping[str, Any], *, task: str) -> dict[str, Any]:
    """The item of alternating human and gpt turns; a system turn is put in front of the first question.

    Raises:
        RecordError: `bad_conversations`, `no_answer`.
    """
    turns = row.get("conversations", row.get("messages"))
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RecordError("bad_conversations", "'conversations' must be a list of {from, value}")
    named = [turn.get("from", turn.get("role")) for turn in turns]
    speakers = [_SPEAKERS.get(name) if isinstance(name, str) else None for name in named]
    said = [turn.get("value", turn.get("content")) for turn in turns]
    system = said[0] if speakers[:1] == ["system"] else None
    if speakers[:1] == ["system"]:
        speakers, said = speakers[1:], said[1:]
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        reason = "no_answer" if speakers[-1:] == ["human"] else "bad_conversations"
        raise RecordError(reason, f"turns must alternate human, gpt; got {named}")
    if not all(isinstance(text, str) for text in said):
        reason = "no_answer" if said[1::2].count(None) else "bad_conversations"
        raise RecordError(reason, "every turn needs a text")
    said[::2] = [text.replace("<image>", MEDIA_TAG).replace("<audio>", MEDIA_TAG) for text in said[::2]]
    pairs = list(zip(said[::2], said[1::2], strict=True))
    question = f"{system}\n{pairs[0][0]}" if system else pairs[0][0]
    item: dict[str, Any] = {"task": task, "question": question, "answer": pairs[0][1]}
    if len(pairs) > 1:
        item["turns"] = [{"question": question, "answer": answer} for question, answer in pairs[1:]]
    return item
