"""Captions and time spans of public video sets: WebVid CSV, Charades-STA lines, ActivityNet-Captions JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arcvideo.data.importers.drafts import (
    Drafting,
    Drafts,
    ImportReport,
    ImportRequest,
    existing,
    found_media,
    judged,
    media_key,
    media_path,
)
from arcvideo.data.importers.parts import json_parts
from arcvideo.shards.text import delimited_rows, rows, whole
from arcvideo.tasks import RecordError

GROUNDING_QUESTION = "When does this happen in the video: {}"
_CHARADES = re.compile(r"(?P<video>\S+) (?P<start>[\d.]+) (?P<end>[\d.]+)##(?P<sentence>.+)")


def import_webvid(request: ImportRequest, *, report: ImportReport) -> Drafts:
    """Return captions of a WebVid CSV (columns videoid, name, and page_dir if the folder has such sub-folders).

    Raises:
        ValueError: a file or folder is missing, or the file lacks the columns.
    """
    request.media_folder()
    drafting = Drafting(report=report, audio=request.audio)
    for path in existing(request.annotations):
        for number, row in delimited_rows(path, encoding=request.encoding):
            report.rows += 1
            if isinstance(row, RecordError):
                report.refuse(f"line {number}", reason=row.reason, detail=row.detail)
                continue
            if not {"videoid", "name"} <= row.keys():
                raise ValueError(f"{path}: a WebVid file has the columns videoid and name, found {', '.join(row)}")
            label = str(row["videoid"] or f"line {number}")
            with judged(label, report=report, place=f"line {number}"):
                media = _webvid_media(row, request=request)
                caption = {"task": "caption", "answer": whole(row["name"] or "")}
                drafting.add(caption, label=label, name=media_key(media, request=request), media=media)
    return drafting.drafts()


def _webvid_media(row: Mapping[str, Any], *, request: ImportRequest) -> Path:
    flat = media_path(f"{row['videoid']}.mp4" if row["videoid"] else None, request=request)
    if row.get("page_dir"):
        nested = media_path(f"{row['page_dir']}/{row['videoid']}.mp4", request=request)
        return nested if os.path.isfile(nested) or not os.path.isfile(flat) else flat
    return flat


def import_charades_sta(request: ImportRequest, *, report: ImportReport) -> Drafts:
    """Time spans of Charades-STA lines `VIDEO START END##sentence`.

    Raises:
        ValueError: a file or folder is missing.
    """
    request.media_folder()
    drafting = Drafting(report=report, audio=request.audio)
    for path in existing(request.annotations):
        for number, line in rows(path, encoding=request.encoding):
            if not line.strip():
                continue
            report.rows += 1
            label = f"line {number}"
            with judged(label, report=report):
                match = _CHARADES.fullmatch(whole(line.strip()))
                if match is None or "\r" in match[0]:
                    raise RecordError("bad_row", f"expected VIDEO START END##sentence, got {line.strip()[:80]!r}")
                span = [_number(match["start"]), _number(match["end"])]
                item = _grounding(match["sentence"], span=span)
                media = found_media(match["video"], request=request)
                drafting.add(item, label=f"{match['video']} {label}", name=match["video"], media=media)
    return drafting.drafts()


def import_activitynet(request: ImportRequest, *, report: ImportReport) -> Drafts:
    """ActivityNet-Captions files {video: {"duration", "timestamps", "sentences"}}: for each video the time span of each
    sentence, and all sentences in order of time as chapters.

    Raises:
        ValueError: a file or folder is missing, or a file does not have that form.
    """
    request.media_folder()
    drafting = Drafting(report=report, audio=request.audio)
    for path in existing(request.annotations):
        for part in json_parts(path, encoding=request.encoding):
            if not isinstance(part, tuple):
                raise ValueError(f"{path}: an ActivityNet-Captions file is one object with a key for each video")
            video, entry = part
            items: list[dict[str, Any]] = []
            with judged(video, report=report):
                if isinstance(entry, RecordError):
                    raise entry
                media = found_media(video, request=request)
                events = _events(entry)
                items = [_grounding(text, span=[start, end]) for start, end, text in events]
                items.append({"task": "chapters", "events": sorted(events, key=lambda event: event[0])})
            report.rows += max(1, len(items))
            for number, item in enumerate(items):
                with judged(f"{video}/{number}", report=report):
                    drafting.add(item, label=f"{video}/{number}", name=video, media=media)
    return drafting.drafts()


def _events(entry: Any) -> list[list[Any]]:
    """[start, end, sentence] of each sentence."""
    times, sentences = (entry.get("timestamps"), entry.get("sentences")) if isinstance(entry, dict) else (None, None)
    if not isinstance(times, list) or not isinstance(sentences, list) or not times or len(times) != len(sentences):
        raise RecordError("bad_row", "timestamps and sentences must be lists of the same length, not empty")
    good = all(
        isinstance(time, list)
        and len(time) == 2
        and all(isinstance(second, (int, float)) for second in time)
        and isinstance(sentence, str)
        for time, sentence in zip(times, sentences, strict=True)
    )
    if not good:
        raise RecordError("bad_row", "each timestamp must be [start, end] in seconds, each sentence a text")
    return [[start, end, sentence.strip()] for (start, end), sentence in zip(times, sentences, strict=True)]


def _grounding(sentence: str, *, span: list[float]) -> dict[str, Any]:
    if not sentence.strip():
        raise RecordError("no_question", "the sentence is empty")
    return {"task": "grounding", "question": GROUNDING_QUESTION.format(sentence.strip()), "span": span}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RecordError("bad_span", f"{text!r} is no number of seconds") from None
