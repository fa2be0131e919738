"""Sets for reinforcement learning in the form of Video-R1 and Open-R1-Video, and ShareGPT4Video's captions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from arcvideo.data.importers.drafts import Drafting, Drafts, ImportReport, ImportRequest, json_rows, judged
from arcvideo.data.importers.tables import add_row
from arcvideo.tasks import RecordError

_MEDIA = ("path", "video", "video_path", "video_filename", "image")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_OPEN = ("OCR", "free-form", "numerical", "regression")
"""Kinds of problems whose answer may be a letter without options."""
_TAGS = re.compile(r"<(?:video|image)>\n?")


def import_video_r1(request: ImportRequest, *, report: ImportReport) -> Drafts:
    """Return rows {"problem", "solution", "path", "options", "process"}: a problem with options becomes mcq, another
    qa; the answer stands in `<answer>` of the solution, reasoning in `<think>` of `process` or of the solution.

    Raises:
        ValueError: a file or folder is missing.
    """
    request.media_folder()
    drafting = Drafting(report=report, audio=request.audio)
    for place, row in json_rows(request, report=report):
        label = str(row.get("problem_id", row.get("id", place)))
        with judged(label, report=report, place=place):
            add_row(_problem(row), label=label, drafting=drafting, request=request)
    return drafting.drafts()


def _problem(row: Mapping[str, Any]) -> dict[str, Any]:
    solution, process = _text(row, "solution", "answer"), _text(row, "process")
    answer = _ANSWER.search(solution)
    think = _THINK.search(process) or _THINK.search(solution)
    return {
        "video": next((row[field] for field in _MEDIA if row.get(field)), None),
        "question": _TAGS.sub("", _text(row, "problem", "question")).strip(),
        "options": row.get("options"),
        "task": "qa" if not row.get("options") and row.get("problem_type") in _OPEN else None,
        "answer": (answer[1] if answer else solution).strip(),
        "think": think[1].strip() if think else None,
    }


def _text(row: Mapping[str, Any], *fields: str) -> str:
    """Return the text of the first of these fields that there is; a number is what it looks like, nothing is "".

    Raises:
        RecordError: `bad_row`.
    """
    field = next((field for field in fields if field in row), fields[0])
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RecordError("bad_row", f"{field!r} must be a text, got {type(value).__name__}")
    return str(value)


def import_sharegpt4video(request: ImportRequest, *, report: ImportReport) -> Drafts:
    """Return rows {"video_path", "captions": [{"idx", "content"}]}: the caption of the whole video, which has the index
    -1.

    Raises:
        ValueError: a file or folder is missing.
    """
    request.media_folder()
    drafting = Drafting(report=report, audio=request.audio)
    for place, row in json_rows(request, report=report):
        label = str(row.get("video_id", place))
        with judged(label, report=report, place=place):
            captions = row.get("captions")
            listed = captions if isinstance(captions, list) else []
            texts = [
                part.get("content") for part in listed if isinstance(part, Mapping) and str(part.get("idx")) == "-1"
            ]
            if not texts:
                raise RecordError("no_answer", "no caption with the index -1, which is that of the whole video")
            cells = {"video": row.get("video_path"), "caption": texts[0]}
            add_row(cells, label=label, drafting=drafting, request=request)
    return drafting.drafts()
