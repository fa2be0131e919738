"""TimeLens-Bench: Charades, ActivityNet and QVHighlights, annotated anew."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import json_object, wanted_file, wanted_folder
from arcvideo.bench.item import Bench, Reader
from arcvideo.bench.questions import Questions
from arcvideo.bench.spans import GROUNDING, captions, note_cut, read_captions

SOURCE = "https://arxiv.org/abs/2512.14698"
SETS = ("charades", "activitynet", "qvhighlights")
LAYOUT = "charades-timelens.json, activitynet-timelens.json, qvhighlights-timelens.json beside videos/charades/, ..."


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: {video: {duration, spans: [[start, end]], queries}} in each file."""
    chosen = options["sets"].split("+") if "sets" in options else list(SETS)
    strange = sorted(set(chosen) - set(SETS))
    if strange:
        raise ValueError(f"timelens-bench: sets={'+'.join(chosen)}: choose of {'+'.join(SETS)}")
    missing = [
        name
        for subset in chosen
        for name, is_there in (
            (f"{subset}-timelens.json", (folder / f"{subset}-timelens.json").is_file()),
            (f"videos/{subset}/", (folder / "videos" / subset).is_dir()),
        )
        if not is_there
    ]
    if missing:
        raise ValueError(f"{folder}: {', '.join(missing)} missing; wanted: {LAYOUT}; sets=charades takes one alone")
    questions = Questions(name="timelens-bench" if set(chosen) == set(SETS) else f"timelens-bench-{'+'.join(chosen)}")
    for subset in chosen:
        path = wanted_file(folder, f"{subset}-timelens.json", layout=LAYOUT)
        videos = wanted_folder(folder, f"videos/{subset}", layout=LAYOUT)
        rows = _named(captions(_cleaned(json_object(path)), spans="spans", sentences="queries"), subset)
        read_captions(questions, rows, folders=[videos], spans="spans", sentences="queries", tags=(f"set:{subset}",))
    note_cut(questions)
    questions.notes.append("published figures are means of each set: compare the scores of the tags set:...")
    return questions.bench(source=SOURCE, folder=folder)


def _named(rows: Iterator[Any], prefix: str) -> Iterator[Any]:
    """Return the three sets share no videos by content, but ids must differ too."""
    return ((f"{prefix}/{ident}", row) for ident, row in rows)


def _cleaned(content: dict[str, Any]) -> dict[str, Any]:
    """Queries without runs of white space and without full stops at the end, as the benchmark asks them."""
    for row in content.values():
        if isinstance(row, dict) and isinstance(row.get("queries"), list):
            row["queries"] = [
                re.sub(r"\s+", " ", query).strip(" .") if isinstance(query, str) else query for query in row["queries"]
            ]
    return content


TIMELENS = Reader(
    read=_read, metrics=GROUNDING, layout=LAYOUT, options={"sets": "charades+activitynet+qvhighlights or some of them"}
)
