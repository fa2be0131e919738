"""Video-Holmes: six options about suspense films, seven types of question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import json_list, media_file, wanted_file, wanted_folder
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Numbers, Questions, entry, multiple_choice, tags, text

SOURCE = "https://arxiv.org/abs/2505.21374"
LAYOUT = "test_Video-Holmes.json beside videos_cropped/ (videos.zip unpacked; or video/, videos/)"
COUNTS = {"test": 1837, "train": 1551}


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: video ID, Question ID, Question Type, Question, Options {A..F}, Answer (letter)."""
    split = options.get("split", "test")
    if split not in COUNTS:
        raise ValueError(f"video-holmes: split={split}: choose test or train")
    name = f"{split}_Video-Holmes.json"
    path = wanted_file(folder, name, f"Benchmark/{name}", layout=LAYOUT.replace("test_", f"{split}_"))
    places = [
        f"{place}{directory}" for directory in ("videos_cropped", "video", "videos") for place in ("", "Benchmark/")
    ]
    videos = wanted_folder(folder, *places, layout=LAYOUT)
    questions = Questions(name="video-holmes" if split == "test" else f"video-holmes-{split}")

    def make(ident: str, row: Any) -> BenchItem:
        row = entry(row)
        fields = multiple_choice(text(row, "Question"), options=row.get("Options"), answer=row.get("Answer"))
        clip = media_file(videos, text(row, "video ID"))
        return BenchItem(id=ident, clip=clip, task="mcq", fields=fields, tags=tags(row, type="Question Type"))

    questions.read(_rows(json_list(path)), make)
    return questions.bench(source=SOURCE, published=COUNTS[split], folder=folder)


def _rows(content: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield a question's number is its own only inside its film."""
    numbered = Numbers()
    for place, row in enumerate(content):
        video, own = (row.get("video ID"), row.get("Question ID")) if isinstance(row, dict) else (None, None)
        is_named = isinstance(own, (str, int)) and isinstance(video, str)
        yield f"{video}/{own}" if is_named else numbered(video, f"entry {place}"), row


VIDEO_HOLMES = Reader(
    read=_read,
    metrics=("mcq_accuracy",),
    published="video-holmes",
    layout=LAYOUT,
    options={"split": "test (the default) or train"},
)
