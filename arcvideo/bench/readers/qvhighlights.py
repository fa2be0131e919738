"""QVHighlights, moments: when something happens, often more than once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import media_file, table_rows, wanted_file, wanted_folder
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Questions, entry
from arcvideo.bench.spans import GROUNDING, grounding_item, length, note_cut

SOURCE = "https://arxiv.org/abs/2107.09609"
LAYOUT = "highlight_val_release.jsonl (or data/highlight_val_release.jsonl) beside videos/"
FILES = {
    "val": ("highlight_val_release.jsonl", 1550),
    "test": ("highlight_test_with_gt.jsonl", 1542),
    "train": ("highlight_train_release.jsonl", 7218),
}


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: qid, query, duration, vid, relevant_windows [[start, end]]."""
    split = options.get("split", "val")
    if split not in FILES:
        raise ValueError(f"qvhighlights: split={split}: choose {', '.join(FILES)}")
    name, count = FILES[split]
    path = wanted_file(folder, name, f"data/{name}", layout=LAYOUT.replace(FILES["val"][0], name))
    videos = wanted_folder(folder, "videos", "qvhilights_videos", "qvhighlights", layout=LAYOUT)
    questions = Questions(name="qvhighlights" if split == "val" else f"qvhighlights-{split}")

    def make(ident: str, row: Any) -> BenchItem:
        row = entry(row)
        windows = row.get("relevant_windows")
        several = isinstance(windows, list) and len(windows) > 1
        return grounding_item(
            ident,
            clip=media_file(videos, row.get("vid")),
            sentence=row.get("query"),
            spans=windows if isinstance(windows, list) else [],
            seconds=length(row.get("duration")),
            tags=(f"moments:{'several' if several else 'one'}",),
        )

    questions.read(_rows(path), make)
    note_cut(questions)
    several = sum("spans" in item.fields for item in questions.items)
    questions.notes.append(
        f"{several} questions have several moments; the one that an answer overlaps most counts, as in the published R1"
    )
    return questions.bench(source=SOURCE, published=count, folder=folder)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    for place, row in table_rows(path):
        own = row.get("qid") if isinstance(row, dict) else None
        yield str(own) if isinstance(own, (str, int)) else place, row


QVHIGHLIGHTS = Reader(
    read=_read,
    metrics=GROUNDING,
    layout=LAYOUT,
    options={"split": "val (the default), test (the file with the truth in it) or train"},
)
