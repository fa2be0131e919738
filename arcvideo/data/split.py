"""`python -m arcvideo.data.shards split`: questions of one's own in a part to train on and a held-out part, by clip."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import media_file, table_rows
from arcvideo.data.import_command import HELD_OUT, held_out_share, is_held_out
from arcvideo.data.importers.sides import content_of_file
from arcvideo.files import write_lines
from arcvideo.tasks import RecordError


def add_split(commands: Any) -> None:
    """Add the subcommand."""
    text = "split own questions (JSON lines) in a part to train on and a held-out part, so that no clip is in both"
    command = commands.add_parser("split", help=text, description=text)
    command.add_argument("questions", type=Path, help="JSON lines, or JSON, CSV, TSV or Parquet, a question each")
    command.add_argument("--held-out", default="20%", help="share of the clips that is held out")
    command.add_argument("--by", default="video", help="field that names the clip")
    command.add_argument("--videos", type=Path, help="folder of the clips: files of equal bytes are one clip")
    command.add_argument("--out", type=Path, required=True, help="folder for NAME-train.jsonl and NAME-held-out.jsonl")
    command.set_defaults(run=_split)


def _split(options: argparse.Namespace) -> int:
    share = held_out_share(options.held_out)
    path: Path = options.questions
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    clips: dict[str, str] = {}
    names: Counter[str] = Counter()
    sides: dict[bool, list[Any]] = {False: [], True: []}
    for place, row in table_rows(path):
        if isinstance(row, RecordError) or not isinstance(row, dict):
            detail = row.detail if isinstance(row, RecordError) else "not an object"
            raise ValueError(f"{path}, {place}: {detail}; mend the line first")
        name = row.get(options.by)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{path}, {place}: field {options.by!r} names no clip; --by says which field does")
        name = os.path.normpath(name)
        if name not in clips:
            clips[name] = _identity(name, videos=options.videos)
        names[clips[name]] += 1
        sides[is_held_out(clips[name], share=share)].append(row)
    held = sum(is_held_out(clip, share=share) for clip in names)
    if not held or held == len(names):
        raise ValueError(f"--held-out {share:.0%} of {len(names)} clips leaves one side without any; change the share")
    if len(names) < len(clips):
        print(f"{len(clips)} names are {len(names)} clips by their bytes, each on one side under all its names")
    elif options.videos is None:
        print("clips are told apart by name alone; with --videos FOLDER, files of equal bytes are one")
    options.out.mkdir(parents=True, exist_ok=True)
    for side, rows in (("train", sides[False]), (HELD_OUT, sides[True])):
        target = options.out / f"{path.stem}-{side}.jsonl"
        write_lines(target, rows)
        count = held if side == HELD_OUT else len(names) - held
        print(f"{target}: {len(rows)} questions about {count} clips")
    return 0


def _identity(name: str, *, videos: Path | None) -> str:
    """Return what a clip is known by: its name, or its file, as `import --held-out` knows it."""
    if videos is None:
        return name
    try:
        path = media_file(videos, name)
    except RecordError as error:
        raise ValueError(f"--videos {videos}: {error.detail}") from None
    try:
        return content_of_file(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
