"""ShortVid-Bench: multiple choice about real short videos, in six dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import json_list, media_file, wanted_file, wanted_folder
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Numbers, Questions, entry, multiple_choice, tags, text

SOURCE = "https://huggingface.co/datasets/TencentARC/ShortVid-Bench"
LAYOUT = "ShortVid-Bench-1k.json beside videos_compressed/ (or videos/)"
SIZES = (400, 1000)
"""Questions of the paper's set, and of the one released later."""


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: video, question, candidates ("A. text"), answer (letter), problem_type (the dimension)."""
    named = [options["file"]] if "file" in options else ["ShortVid-Bench-1k.json", "ShortVid-Bench.json"]
    content = json_list(wanted_file(folder, *named, layout=LAYOUT))
    videos = wanted_folder(folder, "videos_compressed", "videos", layout=LAYOUT)
    size = options.get("size", "")
    if size and size not in map(str, SIZES):
        raise ValueError(f"shortvid-bench: size={size}: choose {' or '.join(map(str, SIZES))}")
    if size and int(size) != len(content):
        raise ValueError(f"{folder}: {named[0]} holds {len(content)} questions, not the {size} of size={size}")
    # The two sets have different figures in the paper and in the release: their names keep them apart.
    questions = Questions(name=f"shortvid-bench-{len(content)}")

    def make(ident: str, row: Any) -> BenchItem:
        row = entry(row)
        fields = multiple_choice(text(row, "question"), options=row.get("candidates"), answer=row.get("answer"))
        about = tags(row, dimension="problem_type", data="data_type")
        return BenchItem(id=ident, clip=media_file(videos, row.get("video")), task="mcq", fields=fields, tags=about)

    questions.read(_rows(content), make)
    if len(content) not in SIZES:
        questions.notes.append(f"{len(content)} questions: neither the 400 of the paper nor the 1,000 released later")
    if not any(tag.startswith("dimension:") for item in questions.items for tag in item.tags):
        questions.notes.append("no problem_type in the file, so there are no scores per dimension")
    questions.notes.append("the official prompt and answer extraction are not published; ours are used")
    return questions.bench(source=SOURCE, folder=folder)


def _rows(content: list[Any]) -> Iterator[tuple[str, Any]]:
    numbered = Numbers()
    for place, row in enumerate(content):
        own = row.get("id", row.get("question_id")) if isinstance(row, dict) else None
        video = row.get("video") if isinstance(row, dict) else None
        yield str(own) if isinstance(own, (str, int)) else numbered(video, f"entry {place}"), row


SHORTVID = Reader(
    read=_read,
    metrics=("mcq_accuracy",),
    published="shortvid-bench",
    layout=LAYOUT,
    options={"file": "name of the annotation file", "size": "400 or 1000: refuse a file of another size"},
)
