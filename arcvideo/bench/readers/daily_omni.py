"""Daily-Omni: questions that need picture and sound of everyday clips of 30 and 60 seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import json_list, media_file, wanted_file, wanted_folder
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Numbers, Questions, entry, multiple_choice, tags, text
from arcvideo.tasks import RecordError

SOURCE = "https://arxiv.org/abs/2505.17862"
LAYOUT = "qa.json beside Videos/ with ID/ID_video.mp4 (Videos.tar unpacked)"


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: video_id, Question, Choice ("A. text"), Answer (letter), Type, video_duration."""
    content = json_list(wanted_file(folder, "qa.json", layout=LAYOUT))
    videos = wanted_folder(folder, "Videos", "videos", layout=LAYOUT)
    questions = Questions(name="daily-omni")

    def make(ident: str, row: Any) -> BenchItem:
        row = entry(row)
        fields = multiple_choice(text(row, "Question"), options=row.get("Choice"), answer=row.get("Answer"))
        about = tags(row, type="Type", duration="video_duration", category="video_category")
        return BenchItem(
            id=ident, clip=_clip(text(row, "video_id"), videos=videos), task="mcq", fields=fields, tags=about
        )

    questions.read(_rows(content), make)
    questions.notes.append("the set numbers no questions: ids are the video and the place among its questions")
    return questions.bench(source=SOURCE, published=1197, folder=folder)


def _clip(video: str, *, videos: Path) -> Path:
    try:
        return media_file(videos, f"{video}/{video}_video")
    except RecordError as error:
        if error.reason != "no_media":
            raise
        try:
            return media_file(videos, video)
        except RecordError:
            raise error from None  # the published place is the one to name


def _rows(content: list[Any]) -> Iterator[tuple[str, Any]]:
    numbered = Numbers()
    for place, row in enumerate(content):
        yield numbered(row.get("video_id") if isinstance(row, dict) else None, f"entry {place}"), row


DAILY_OMNI = Reader(read=_read, metrics=("mcq_accuracy",), layout=LAYOUT)
