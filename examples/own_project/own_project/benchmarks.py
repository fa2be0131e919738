"""A benchmark: `counts.json` beside its clips, read into questions of the task `counting`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from arcvideo.bench.folder import json_list, media_file, wanted_file
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Questions, entry

LAYOUT = "counts.json beside the clips"


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Rows have `name`, `file`, `question` and `count`."""
    rows = json_list(wanted_file(folder, "counts.json", layout=LAYOUT))
    questions = Questions(name="counts")

    def make(ident: str, row: Mapping[str, object]) -> BenchItem:
        row = entry(row)
        fields = {"task": "counting", "question": row["question"], "count": row["count"]}
        return BenchItem(id=ident, clip=media_file(folder, row.get("file")), task="counting", fields=fields)

    questions.read(((str(row.get("name")), row) for row in rows), make)
    return questions.bench(source="https://example.org/counts", folder=folder)


COUNTS = Reader(read=_read, metrics=("counting_accuracy",), layout=LAYOUT)
