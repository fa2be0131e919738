"""Video-MME: multiple choice about short, medium and long videos, with and without subtitles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import media_file, subtitle_text, table_rows, wanted_file, wanted_folder
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Numbers, Questions, entry, multiple_choice, tags, text

SOURCE = "https://arxiv.org/abs/2405.21075"
LAYOUT = "videomme/test-00000-of-00001.parquet beside data/ (or video/, videos/) and, for subtitles=yes, subtitle/"
FILES = (
    "videomme/test-00000-of-00001.parquet",
    "test-00000-of-00001.parquet",
    "Video-MME.tsv",
    "videomme.json",
    "videomme.jsonl",
)
DURATIONS = ("short", "medium", "long")


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: question_id, videoID, duration, domain, sub_category, task_type, question, options, answer."""
    path = wanted_file(folder, *FILES, layout=LAYOUT)
    videos = wanted_folder(folder, "data", "video", "videos", layout=LAYOUT)
    with_subtitles = yes(options.get("subtitles", "no"), name="video-mme: subtitles")
    folder_of_texts = wanted_folder(folder, "subtitle", "subtitles", layout=LAYOUT) if with_subtitles else None
    wanted = options["duration"].split("+") if "duration" in options else list(DURATIONS)
    if set(wanted) - set(DURATIONS):
        raise ValueError(f"video-mme: duration={'+'.join(wanted)}: choose of {'+'.join(DURATIONS)}")
    some = "" if set(wanted) == set(DURATIONS) else f"-{'+'.join(wanted)}"
    questions = Questions(name=f"video-mme{'-subtitles' if with_subtitles else ''}{some}")

    def make(ident: str, row: Any) -> BenchItem:
        row = entry(row)
        clip = media_file(videos, text(row, "videoID"))
        said = None if folder_of_texts is None else subtitle_text(folder_of_texts / f"{row['videoID']}.srt")
        return BenchItem(
            id=ident,
            clip=clip,
            task="mcq",
            fields=multiple_choice(text(row, "question"), options=row.get("options"), answer=row.get("answer")),
            tags=tags(row, duration="duration", domain="domain", category="sub_category", task="task_type"),
            subtitles=said,
        )

    questions.read(_rows(path, wanted=wanted), make)
    if folder_of_texts is not None:
        silent = sum(item.subtitles is None for item in questions.items)
        questions.notes.append(f"{silent} questions are about videos without subtitles")
    return questions.bench(source=SOURCE, published=900 * len(set(wanted)), folder=folder)


def _rows(path: Path, *, wanted: list[str]) -> Iterator[tuple[str, Any]]:
    numbered = Numbers()
    for place, row in table_rows(path):
        is_row = isinstance(row, dict)
        if is_row and row.get("duration") in DURATIONS and row["duration"] not in wanted:
            continue
        own = row.get("question_id") if is_row else None
        yield str(own) if isinstance(own, (str, int)) else numbered(row.get("videoID") if is_row else None, place), row


def yes(value: str, *, name: str) -> bool:
    """Return whether an option says yes.

    Raises:
        ValueError: it says neither yes nor no.
    """
    if value.lower() not in ("yes", "no", "true", "false"):
        raise ValueError(f"{name}={value}: choose yes or no")
    return value.lower() in ("yes", "true")


VIDEO_MME = Reader(
    read=_read,
    metrics=("mcq_accuracy",),
    layout=LAYOUT,
    options={"subtitles": "yes or no (the default)", "duration": "short, medium, long or some of them, joined by +"},
)
