"""WorldSense: questions about the real world in eight domains, for picture and sound together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import json_object, media_file, subtitle_text, wanted_file, wanted_folder
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Questions, entry, multiple_choice, tags, text
from arcvideo.bench.readers.video_mme import yes
from arcvideo.tasks import RecordError

SOURCE = "https://arxiv.org/abs/2502.04326"
LAYOUT = "worldsense_qa.json beside videos/ (the zips unpacked) and, for subtitles=yes, subtitles/"
_TASK = re.compile(r"task\d*")


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: {video: {domain, sub_category, audio_class, task0: {question, candidates, answer, task_type, ...}}}."""
    content = json_object(wanted_file(folder, "worldsense_qa.json", layout=LAYOUT))
    videos = wanted_folder(folder, "videos", "video", layout=LAYOUT)
    with_subtitles = yes(options.get("subtitles", "no"), name="worldsense: subtitles")
    folder_of_texts = wanted_folder(folder, "subtitles", "subtitle", layout=LAYOUT) if with_subtitles else None
    questions = Questions(name=f"worldsense{'-subtitles' if with_subtitles else ''}")

    def make(ident: str, row: Any) -> BenchItem:
        video, about, task = row
        task = entry(task)
        fields = multiple_choice(text(task, "question"), options=task.get("candidates"), answer=task.get("answer"))
        clip = media_file(videos, video)
        return BenchItem(
            id=ident,
            clip=clip,
            task="mcq",
            fields=fields,
            tags=(
                *tags(about, domain="domain", category="sub_category", audio="audio_class"),
                *tags(task, skill="task_domain", task="task_type"),
            ),
            subtitles=None if folder_of_texts is None else subtitle_text(folder_of_texts / f"{video}.srt"),
        )

    questions.read(_rows(content), make)
    return questions.bench(source=SOURCE, published=3172, folder=folder)


def _rows(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for video, about in content.items():
        names = [name for name in about if _TASK.fullmatch(name)] if isinstance(about, dict) else []
        if not names:
            yield video, RecordError("bad_row", "a video must be an object with task0, task1, ...")
        yield from ((f"{video}/{name}", (video, about, about[name])) for name in names)


WORLDSENSE = Reader(
    read=_read,
    metrics=("mcq_accuracy",),
    layout=LAYOUT,
    options={"subtitles": "yes or no (the default)"},
)
