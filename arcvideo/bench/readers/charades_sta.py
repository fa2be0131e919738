"""Charades-STA: when something happens in a video of a room."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import json_object, media_file, table_rows, wanted_file, wanted_folder
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.lengths import clip_lengths
from arcvideo.bench.questions import Questions
from arcvideo.bench.spans import GROUNDING, captions, grounding_item, note_cut, read_captions
from arcvideo.shards.text import rows as text_rows
from arcvideo.shards.text import whole
from arcvideo.tasks import RecordError

SOURCE = "https://arxiv.org/abs/1705.02101"
VIDEOS = ("Charades_v1_480", "Charades_v1", "videos", "charades_videos")
LAYOUT = "charades_sta_test.txt (or charades_test.json) beside Charades_v1_480/ (or Charades_v1/, videos/)"
COUNTS = {"test": 3720, "train": 12_408}
_LINE = re.compile(r"(\S+)\s+(-?[\d.]+)\s+(-?[\d.]+)\s*##(.*)")


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Return lines `VIDEO START END##sentence`, or an object {video: {duration, timestamps, sentences}}."""
    split = options.get("split", "test")
    if split not in COUNTS:
        raise ValueError(f"charades-sta: split={split}: choose test or train")
    names = (f"charades_sta_{split}.txt", f"Charades/charades_sta_{split}.txt", f"charades_{split}.json")
    path = wanted_file(folder, *names, layout=LAYOUT.replace("_test", f"_{split}"))
    videos = wanted_folder(folder, *VIDEOS, layout=LAYOUT)
    questions = Questions(name="charades-sta" if split == "test" else f"charades-sta-{split}")
    if path.suffix == ".json":
        read_captions(questions, captions(json_object(path)), folders=[videos])
    else:
        _read_lines(questions, path, videos=videos)
    note_cut(questions)
    questions.notes.append("about a third of the spans are inexact by a later re-annotation (arXiv 2512.14698)")
    return questions.bench(source=SOURCE, published=COUNTS[split], folder=folder)


def _read_lines(questions: Questions, path: Path, *, videos: Path) -> None:
    rows = list(_lines(path))
    seconds = _stated(path.parent)
    files = _files([row[0] for _, row in rows if not isinstance(row, RecordError)], videos=videos)
    probed = clip_lengths([file for video, file in files.items() if video not in seconds], noted=videos)

    def make(ident: str, row: Any) -> BenchItem:
        video, start, end, sentence = row
        clip = files.get(video) or media_file(videos, video)
        length = seconds.get(video) or probed[clip]
        if isinstance(length, RecordError):
            raise length
        span = [float(start), float(end)]
        return grounding_item(ident, clip=clip, sentence=sentence, spans=[span], seconds=length)

    questions.read(rows, make)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in text_rows(path):
        if not line.strip():
            continue
        try:
            match = _LINE.fullmatch(whole(line.strip()))
            problem = RecordError("bad_row", f"expected VIDEO START END##sentence, got {line.strip()[:80]!r}")
            yield f"line {number}", match.groups() if match else problem
        except RecordError as error:
            yield f"line {number}", error


def _files(videos_named: list[str], *, videos: Path) -> dict[str, Path]:
    """Video -> its file, of those that are there."""
    paths = {}
    for video in dict.fromkeys(videos_named):
        try:
            paths[video] = media_file(videos, video)
        except RecordError:
            continue
    return paths


def _stated(folder: Path) -> dict[str, float]:
    """Video -> its seconds, from the tables of Charades itself where they lie beside the annotations."""
    seconds: dict[str, float] = {}
    for name in ("Charades_v1_test.csv", "Charades_v1_train.csv"):
        path = next((place for place in (folder / name, folder / "Charades" / name) if place.is_file()), None)
        for _, row in table_rows(path) if path is not None else ():
            length = str(row.get("length") or "") if isinstance(row, dict) else ""
            if length.replace(".", "", 1).isdecimal() and float(length) > 0:
                seconds[str(row.get("id"))] = float(length)
    return seconds


CHARADES_STA = Reader(
    read=_read,
    metrics=GROUNDING,
    published="charades-sta",
    layout=LAYOUT,
    options={"split": "test (the default) or train"},
)
