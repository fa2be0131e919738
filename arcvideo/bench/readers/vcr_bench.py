"""VCR-Bench: reasoning about videos step by step; the multiple choice part is what the paper of ARC reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import json_list, media_file, wanted_file
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Questions, entry, multiple_choice, tags, text
from arcvideo.tasks import RecordError

SOURCE = "https://arxiv.org/abs/2504.07956"
LAYOUT = "v1/videos/meta_info_video.json beside v1/videos/video/ (video.zip unpacked)"
FILES = ("v1/videos/meta_info_video.json", "meta_info_video.json", "videos/meta_info_video.json")
PARTS = ("mcq", "open", "all")


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: id, video_path, duration, dimension, question, multiple-choice, choices {A..D}, answer."""
    part = options.get("part", "mcq")
    if part not in PARTS:
        raise ValueError(f"vcr-bench: part={part}: choose {', '.join(PARTS)}")
    path = wanted_file(folder, *FILES, layout=LAYOUT)
    places = [path.parent, folder]
    if not any((place / "video").is_dir() for place in places):
        raise ValueError(f"{folder}: folder {path.parent.relative_to(folder) / 'video'} is missing; wanted: {LAYOUT}")
    questions = Questions(name="vcr-bench" if part == "all" else f"vcr-bench-{part}")
    content = json_list(path)

    def make(ident: str, row: Any) -> BenchItem:
        row = entry(row)
        is_choice = row.get("multiple-choice")
        if not isinstance(is_choice, bool):
            raise RecordError("bad_kind", f"'multiple-choice' must be true or false, got {is_choice!r}")
        question = text(row, "question")
        if is_choice:
            fields = multiple_choice(question, options=row.get("choices"), answer=row.get("answer"))
        else:
            fields = {"task": "qa", "question": question, "answer": text(row, "answer")}
        clip = media_file(places, row.get("video_path"))
        about = tags(row, dimension="dimension")
        return BenchItem(id=ident, clip=clip, task=fields["task"], fields=fields, tags=about)

    questions.read(_rows(content, part=part), make)
    left = sum(isinstance(row, dict) and not _is_in(row, part=part) for row in content)
    if left:
        questions.notes.append(f"{left} questions of the other part are not asked; part=all asks them")
    if part != "mcq":
        questions.notes.append("the published accuracy of open answers is judged by a language model")
    return questions.bench(source=SOURCE, published=1034 if part == "all" else None, folder=folder)


def _rows(content: list[Any], *, part: str) -> Iterator[tuple[str, Any]]:
    for place, row in enumerate(content):
        if not isinstance(row, dict) or _is_in(row, part=part):
            own = row.get("id") if isinstance(row, dict) else None
            yield str(own) if isinstance(own, (str, int)) else f"entry {place}", row


def _is_in(row: Mapping[str, Any], *, part: str) -> bool:
    """Return whether a question belongs to the part; one that does not say what it is does, so that it is listed."""
    return part == "all" or row.get("multiple-choice") is not (part != "mcq")


VCR_BENCH = Reader(
    read=_read,
    metrics=("mcq_accuracy",),
    published="vcr-bench-mcq",
    layout=LAYOUT,
    options={"part": "mcq (the default), open or all"},
)
