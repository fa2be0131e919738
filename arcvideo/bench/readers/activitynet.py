"""ActivityNet-Captions as temporal grounding: when each sentence happens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from arcvideo.bench.folder import json_object, wanted_file, wanted_folder
from arcvideo.bench.item import Bench, Reader
from arcvideo.bench.questions import Questions
from arcvideo.bench.spans import GROUNDING, captions, note_cut, read_captions

SOURCE = "https://arxiv.org/abs/1705.00754"
LAYOUT = "val_2.json (or captions/val_2.json) beside videos/ (or v1-3/train_val/)"
COUNTS = {"val_2": 17_031, "val_1": 17_505, "train": 37_421}
"""What the field calls its test set is val_2."""


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: {v_ID: {duration, timestamps: [[start, end]], sentences}}."""
    split = options.get("split", "val_2")
    if split not in COUNTS:
        raise ValueError(f"activitynet-captions: split={split}: choose val_2, val_1 or train")
    names = [f"{place}{split}.json" for place in ("", "captions/", "annotations/")]
    path = wanted_file(folder, *names, layout=LAYOUT.replace("val_2", split))
    videos = wanted_folder(folder, "videos", "v1-3/train_val", "v1-2/val", layout=LAYOUT)
    questions = Questions(name="activitynet-captions" if split == "val_2" else f"activitynet-captions-{split}")
    read_captions(questions, captions(json_object(path)), folders=[videos])
    note_cut(questions)
    return questions.bench(source=SOURCE, published=COUNTS[split], folder=folder)


ACTIVITYNET = Reader(
    read=_read,
    metrics=GROUNDING,
    published="activitynet-captions",
    layout=LAYOUT,
    options={"split": "val_2 (the default, the field's test set), val_1 or train"},
)
