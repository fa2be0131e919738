"""`python -m arcvideo.data.shards import`."""

from __future__ import annotations

import argparse
import glob
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import braceexpand
from tqdm import tqdm

from arcvideo.data.importers import IMPORTERS, ImportReport, ImportRequest
from arcvideo.data.importers.conversations import MetaEntry, meta_entries
from arcvideo.data.importers.write import write_drafts
from arcvideo.files import write_lines
from arcvideo.shards.index import ensure_indexes
from arcvideo.shards.members import Problem

META = "arc-meta"


def add_import(commands: Any) -> None:
    """Adds the subcommand."""
    text = "turn annotation files and their media into shards; started again, it goes on where it stopped"
    command = commands.add_parser("import", help=text, description=text)
    command.add_argument("--format", choices=[*sorted(IMPORTERS), META], required=True)
    command.add_argument(
        "--annotations",
        nargs="+",
        required=True,
        help="annotation files ({00..11} braces and * globs allowed); folders for transcripts",
    )
    command.add_argument("--videos", type=Path, help="folder of the media files")
    command.add_argument("--audio", type=Path, help="folder of sound files, used for videos without sound")
    command.add_argument("--task", choices=("summary", "qa"), default="summary", help="what a conversation becomes")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--name", default="shard", help="shards are called NAME-000000.tar, ...")
    command.add_argument("--per-shard", type=int, default=1000, help="records of a shard")
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that examine media")
    command.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    if options.per_shard < 1 or options.workers < 0:
        raise ValueError("--per-shard must be at least 1 and --workers at least 0")
    if Path(options.name).name != options.name:
        raise ValueError(f"--name {options.name}: a name without slashes; --out says where")
    paths = tuple(path for pattern in options.annotations for path in _expanded(pattern))
    if options.format != META:
        request = ImportRequest(annotations=paths, videos=options.videos, audio=options.audio, task=options.task)
        _import_one(options, request, kind=options.format, name=options.name)
        return 0
    for entry in [entry for path in paths for entry in meta_entries(path, task=options.task)]:
        _import_one(options, entry.request, kind="arc", name=entry.name)
        print(f"  {_mixture_line(options.out, entry)}")
    return 0


def _expanded(pattern: str) -> list[Path]:
    found: list[Path] = []
    for part in braceexpand.braceexpand(os.path.expanduser(pattern)):
        found += map(Path, sorted(glob.glob(part)) or [part])
    return found


def _mixture_line(out: Path, entry: MetaEntry) -> str:
    """The source of a mixture that does what `repeat_time` asked for."""
    shards = f"data.sources.{entry.name}.shards={out}/{entry.name}-*.tar"
    how = "fraction" if entry.repeat < 1 else "weight"
    return shards if entry.repeat == 1 else f"{shards} data.sources.{entry.name}.{how}={entry.repeat:g}"


def _import_one(options: argparse.Namespace, request: ImportRequest, *, kind: str, name: str) -> None:
    report = ImportReport()
    drafts = list(IMPORTERS[kind](request, report=report))
    try:
        with tqdm(total=len(drafts), desc=f"import {name}", unit="clip", leave=False) as bar:
            paths = write_drafts(
                drafts,
                out=options.out,
                name=name,
                per_shard=options.per_shard,
                workers=options.workers,
                report=report,
                advance=bar.update,
            )
    except ValueError:
        print_problems(report.problems)
        raise
    write_lines(options.out / f"{name}.quarantine.jsonl", map(asdict, report.problems))
    print(f"{report.rows} rows: {report.used} used in {len(paths)} shards, {len(report.problems)} quarantined")
    assert report.rows == report.used + len(report.problems)
    if report.loose_tags:
        print(f"warning: {report.loose_tags} questions have <video> without a newline behind it; accepted")
    print_problems(report.problems)
    ensure_indexes(paths, workers=options.workers)


def print_problems(problems: list[Problem], *, most: int = 20) -> None:
    """The first problems, a line each."""
    for problem in problems[:most]:
        print(f"  {problem.key}: {problem.reason}: {problem.detail}")
    if len(problems) > most:
        print(f"  ... and {len(problems) - most} more")
