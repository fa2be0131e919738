"""`python -m arcvideo.data.shards fingerprint` and `overlap`: clips that two sets share, however they were changed."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arcvideo.files import write_lines
from arcvideo.fingerprints.guard import joined, overlap_line
from arcvideo.fingerprints.match import overlaps
from arcvideo.fingerprints.sidecar import Printed, print_folder, print_shard
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ensure_indexes


def add_overlap(commands: Any) -> None:
    """Add the subcommands."""
    text = "keep fingerprints of picture and sound beside shards, which `overlap` and training compare"
    command = commands.add_parser("fingerprint", help=text, description=text)
    command.add_argument("shards", nargs="+", help="tar files, or folders of videos")
    command.set_defaults(run=_fingerprint)
    other = (
        "find clips of one set in another, also trimmed, encoded anew, or with another sound; exit status 1 when any"
    )
    overlap = commands.add_parser("overlap", help=other, description=other)
    overlap.add_argument(
        "first", help="clips that are looked for: tar files, or a folder of videos such as a benchmark's"
    )
    overlap.add_argument("second", help="clips that they are looked for in")
    overlap.add_argument("--out", type=Path, help="also write every pair, as JSON lines")
    overlap.set_defaults(run=_overlap)
    for parser in (command, overlap):
        parser.add_argument("--cache", help="folder for copies of remote shards")
        parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads that decode")


def _fingerprint(options: argparse.Namespace) -> int:
    for pattern in options.shards:
        _say(_printed(pattern, options=options))
    return 0


def _overlap(options: argparse.Namespace) -> int:
    first, second = (_printed(pattern, options=options) for pattern in (options.first, options.second))
    for side in (first, second):
        _say(side)
    pairs = overlaps(first.prints, second.prints)
    if options.out is not None:
        rows = [
            {**asdict(pair), "first": first.keys[pair.first], "second": second.keys[pair.second], "kind": pair.kind}
            for pair in pairs
        ]
        write_lines(options.out, rows)
    for pair in pairs[:20]:
        print(f"  {overlap_line(pair, first, second)}")
    if len(pairs) > 20:
        print(f"  ... and {len(pairs) - 20} more{'' if options.out else '; --out FILE keeps all'}")
    shared, among = len({pair.first for pair in pairs}), len({pair.second for pair in pairs})
    print(f"{shared} of {len(first.keys)} clips are in {second.name}, as {among} of its {len(second.keys)}")
    return 1 if pairs else 0


def _printed(pattern: str, *, options: argparse.Namespace) -> Printed:
    folder = Path(pattern)
    if folder.is_dir():
        return print_folder(folder, workers=options.workers)
    cache = None if options.cache is None else ShardCacheSettings(path=options.cache)
    indexes = ensure_indexes(expand_shards(pattern, cache=cache), workers=options.workers)
    return joined([print_shard(index, workers=options.workers) for index in indexes])


def _say(printed: Printed) -> None:
    heard = sum(len(fingerprint.sound) > 0 for fingerprint in printed.prints)
    seen = sum(len(fingerprint.picture) > 0 for fingerprint in printed.prints)
    print(f"{printed.name}: {len(printed.keys)} clips, {seen} with picture, {heard} with sound")
    for line in printed.unread[:5]:
        print(f"  not decoded: {line}")
