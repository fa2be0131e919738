"""Other people's annotation formats -> records. Media bytes are copied untouched, unusable rows are listed.

ARC's own format: JSON lines {"id", "video", "conversations": [{"from": "human"|"gpt", "value"}, ...]} beside a folder
of videos and, for videos without sound, a folder of sound files with the same base names (spec 3.5 and 6).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcvideo.data.members import AUDIO, IMAGE, VIDEO, Problem
from arcvideo.data.probe import probe
from arcvideo.data.render import MEDIA_TAG
from arcvideo.data.shards import Record
from arcvideo.media.errors import MediaError
from arcvideo.tasks import RecordError, make_sample


@dataclass(kw_only=True)
class ImportReport:
    """What became of the rows: rows = used + problems."""

    rows: int = 0
    used: int = 0
    problems: list[Problem] = field(default_factory=list)
    loose_tags: int = 0
    """Questions whose `<video>` is not followed by a newline; the released trainer fails on them, we accept them."""


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What to import."""

    annotations: Path
    videos: Path
    audio: Path | None = None
    task: str = "summary"


def import_arc(request: ImportRequest, *, report: ImportReport) -> Iterator[Record]:
    """The records of an ARC annotation file. Rows about the same video become items of one record.

    Raises:
        ValueError: the file or a folder is missing, or the task cannot hold conversations.
    """
    if request.task not in ("summary", "qa"):
        raise ValueError(f"--task {request.task}: conversations become items of the task summary or qa")
    for path in (request.videos, request.audio):
        if path is not None and not path.is_dir():
            raise ValueError(f"{path}: no such folder")
    by_video: dict[str, list[dict[str, Any]]] = {}
    for number, row in _rows(request.annotations, report=report):
        try:
            video = row.get("video")
            if not isinstance(video, str) or not video:
                raise RecordError("no_media", "field 'video' is missing")
            if Path(video).is_absolute() or ".." in Path(video).parts:
                raise RecordError("unsafe_name", f"video {video!r}")
            item = _item(row.get("conversations"), task=request.task)
            make_sample(item, key=f"row {number}", media_key=video)
        except RecordError as error:
            report.problems.append(_problem(row, number, reason=error.reason, detail=error.detail))
            continue
        report.loose_tags += _has_loose_tag(item["question"])
        by_video.setdefault(video, []).append({**item, "id": row.get("id", number)})
    for video, items in by_video.items():
        yield from _record(video, items, request=request, report=report)


def _rows(path: Path, *, report: ImportReport) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of the lines that are JSON objects."""
    if not path.is_file():
        raise ValueError(f"{path}: no such annotation file")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            report.rows += 1
            try:
                row = json.loads(line.decode("utf-8"))
                if not isinstance(row, dict):
                    raise TypeError("not an object")
            except (ValueError, TypeError, RecursionError) as error:
                report.problems.append(_problem({}, number, reason="broken_json", detail=str(error)))
                continue
            yield number, row


def _item(conversations: Any, *, task: str) -> dict[str, Any]:
    """The item of alternating human and gpt turns."""
    if not isinstance(conversations, list) or not all(isinstance(turn, Mapping) for turn in conversations):
        raise RecordError("bad_conversations", "'conversations' must be a list of {from, value}")
    speakers = [turn.get("from") for turn in conversations]
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        reason = "no_answer" if speakers[-1:] == ["human"] else "bad_conversations"
        raise RecordError(reason, f"turns must alternate human, gpt; got {speakers}")
    said = [turn.get("value") for turn in conversations]
    pairs = list(zip(said[::2], said[1::2], strict=True))
    item: dict[str, Any] = {"task": task, "question": pairs[0][0], "answer": pairs[0][1]}
    if len(pairs) > 1:
        item["turns"] = [{"question": question, "answer": answer} for question, answer in pairs[1:]]
    return item


def _record(
    video: str, items: list[dict[str, Any]], *, request: ImportRequest, report: ImportReport
) -> Iterator[Record]:
    """The record of one video, or a problem for each of its rows."""
    path = request.videos / video
    extension = path.suffix.lower().lstrip(".")
    try:
        if extension not in VIDEO | AUDIO | IMAGE:
            raise MediaError("unreadable", f"{video}: unknown media type")
        if not path.is_file():
            raise MediaError("no_media", f"{path}: no such file")
        media = {extension: path.read_bytes()}
        sound = _sound(path.stem, request=request)
        if not probe(media[extension], name=video).sound_samples and sound is not None:
            media[sound.suffix.lower().lstrip(".")] = sound.read_bytes()
    except (MediaError, OSError) as error:
        reason = getattr(error, "reason", "unreadable")
        report.problems += [_problem(item, 0, reason=reason, detail=str(error)) for item in items]
        return
    report.used += len(items)
    # Keys end at the first dot of a name, so dots would cut them.
    yield Record(key=str(Path(video).with_suffix("")).replace(".", "_"), content={"items": items}, media=media)


def _sound(stem: str, *, request: ImportRequest) -> Path | None:
    folder = request.audio
    if folder is None:
        return None
    return next((path for kind in sorted(AUDIO) if (path := folder / f"{stem}.{kind}").is_file()), None)


def _has_loose_tag(question: str) -> bool:
    return MEDIA_TAG in question and f"{MEDIA_TAG}\n" not in question


def _problem(row: Mapping[str, Any], number: int, *, reason: str, detail: str) -> Problem:
    key = str(row.get("id", f"line {number}"))
    return Problem(key=key, stage="import", reason=reason, detail=f"line {number}: {detail}" if number else detail)


IMPORTERS: dict[str, Callable[..., Iterator[Record]]] = {"arc": import_arc}
"""Format name -> its reader."""
