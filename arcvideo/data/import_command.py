"""`python -m arcvideo.data.shards import`."""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import braceexpand

from arcvideo.data.importers import IMPORTERS, Draft, ImportReport, ImportRequest
from arcvideo.data.importers.conversations import MetaEntry, meta_entries
from arcvideo.data.importers.write import write_drafts
from arcvideo.files import write_lines
from arcvideo.progress import counted
from arcvideo.shards.index import ensure_indexes
from arcvideo.shards.members import Problem

META = "arc-meta"
HELD_OUT = "held-out"


def add_import(commands: Any) -> None:
    """Add the subcommand."""
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
    command.add_argument("--outside", action="store_true", help="allow media outside of --videos")
    command.add_argument("--map", help="columns of a table: question=q,video=path,...")
    command.add_argument("--encoding", help="of the annotations, like cp1252; default: UTF-8, or what their mark says")
    command.add_argument("--task", choices=("summary", "qa"), default="summary", help="what a conversation becomes")
    command.add_argument("--held-out", default="0%", help="share of the clips that goes to shards NAME-held-out-*.tar")
    command.add_argument("--dry-run", action="store_true", help="say what would be used and why not; write nothing")
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
    if options.map and options.format not in ("table", "video-chatgpt", "video-mme", "daily-omni"):
        raise ValueError(f"--map: columns are for tables; give --format table instead of {options.format}")
    held_out_share(options.held_out)
    for folder in ("videos", "audio", "out"):
        if getattr(options, folder) is not None:
            setattr(options, folder, getattr(options, folder).expanduser())
    paths = tuple(path for pattern in options.annotations for path in _expanded(pattern))
    if options.format != META:
        request = ImportRequest(
            annotations=paths,
            videos=options.videos,
            audio=options.audio,
            task=options.task,
            outside=options.outside,
            encoding=options.encoding,
            columns=_columns(options.map),
            staging=options.out / f".{options.name}.staged",
        )
        _import_one(options, request, kind=options.format, name=options.name)
        return 0
    for entry in [entry for path in paths for entry in meta_entries(path, task=options.task)]:
        _import_one(options, entry.request, kind="arc", name=entry.name)
        print(f"  {_mixture_line(options.out, entry)}")
    return 0


def _expanded(pattern: str) -> list[Path]:
    paths: list[Path] = []
    for part in braceexpand.braceexpand(os.path.expanduser(pattern)):
        paths += map(Path, sorted(glob.glob(part)) or [part])
    return paths


def _columns(text: str | None) -> dict[str, str]:
    """Return the mapping of `--map field=column,...`."""
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    if not all(field and equals and column for field, equals, column in pairs):
        raise ValueError(f"--map {text}: write field=column,field=column, like question=q,video=path")
    return {field.strip(): column.strip() for field, _, column in pairs}


def held_out_share(text: str) -> float:
    """Return the number of `10%` or `0.1`.

    Raises:
        ValueError: it is none from 0 to below 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ValueError(f"--held-out {text}: must be a share from 0% to below 100%, like 10%")
    return share


def is_held_out(name: str, *, share: float) -> bool:
    """Return whether the clip of that name is among the share that is held out, whatever other clips there are."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") < share * 2**64


def _mixture_line(out: Path, entry: MetaEntry) -> str:
    """Return the source of a mixture that does what `repeat_time` asked for."""
    shards = f"data.sources.{entry.name}.shards={out}/{entry.name}-*.tar"
    how = "fraction" if entry.repeat < 1 else "weight"
    return shards if entry.repeat == 1 else f"{shards} data.sources.{entry.name}.{how}={entry.repeat:g}"


def _import_one(options: argparse.Namespace, request: ImportRequest, *, kind: str, name: str) -> None:
    report = ImportReport()
    try:
        drafts = list(IMPORTERS[kind](request, report=report))
        sizes = {path: path.stat().st_size for draft in drafts for path in _files(draft) if path.is_file()}
        if options.dry_run:
            _show_plan(drafts, sizes=sizes, report=report)
            return
        paths: list[Path] = []
        try:
            _check_room(options.out, size=sum(sizes.values()))
            for part, chosen in _parts(drafts, name=name, share=held_out_share(options.held_out)):
                paths += _written(options, chosen, name=part, report=report)
        except ValueError:
            print_problems(report.problems)
            raise
        finally:  # also when no row can be used: then it is wanted most
            options.out.mkdir(parents=True, exist_ok=True)
            write_lines(options.out / f"{name}.quarantine.jsonl", map(asdict, report.problems))
    finally:
        if request.staging is not None:
            shutil.rmtree(request.staging, ignore_errors=True)
    print(f"{report.rows} rows: {report.used} used in {len(paths)} shards, {len(report.problems)} quarantined")
    assert report.rows == report.used + len(report.problems)
    _print_remarks(report)
    print_problems(report.problems)
    ensure_indexes(paths, workers=options.workers)


def _files(draft: Draft) -> list[Path]:
    return [path for path in (draft.media, draft.sound, *draft.more) if path is not None]


def _parts(drafts: Sequence[Draft], *, name: str, share: float) -> list[tuple[str, list[Draft]]]:
    """Return (name of the shards, drafts): all, or those to train on and those held out, chosen by their keys alone."""
    held = [draft for draft in drafts if is_held_out(draft.key, share=share)]
    if not share:
        return [(name, list(drafts))]
    if not held or len(held) == len(drafts):
        raise ValueError(f"--held-out {share:.0%} of {len(drafts)} clips leaves one side without any; change the share")
    return [
        (name, [draft for draft in drafts if not is_held_out(draft.key, share=share)]),
        (f"{name}-{HELD_OUT}", held),
    ]


def _written(options: argparse.Namespace, drafts: Sequence[Draft], *, name: str, report: ImportReport) -> list[Path]:
    with counted(what=f"import {name}", total=len(drafts), unit="clip") as advance:
        return write_drafts(
            drafts,
            out=options.out,
            name=name,
            per_shard=options.per_shard,
            workers=options.workers,
            report=report,
            advance=advance,
        )


def _check_room(out: Path, *, size: int) -> None:
    """Say how much disk the shards need, and complain before the first byte when there is less."""
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    written = sum(path.stat().st_size for path in out.glob("*.tar"))
    print(f"disk     {size / 2**30:.2f} GiB of media to copy, {free / 2**30:.2f} GiB free in {out}")
    if size > free + written:
        raise ValueError(
            f"--out {out}: {size / 2**30:.1f} GiB of media do not fit on {free / 2**30:.1f} GiB; choose another disk"
        )


def _show_plan(drafts: Sequence[Draft], *, sizes: Mapping[Path, int], report: ImportReport) -> None:
    """What an import would use, without reading media."""
    used, examples = 0, list[str]()
    for draft in drafts:
        missing = [path for path in _files(draft)[:1] if path not in sizes]
        for label in draft.labels if missing else ():
            report.refuse(label, reason="no_media", detail=f"{missing[0]}: no such file")
        if not missing:
            used += len(draft.items)
            examples += [
                f"  {label}: {json.dumps(item)[:150]}" for label, item in zip(draft.labels, draft.items, strict=True)
            ]
    clips = sum(not draft.media or draft.media in sizes for draft in drafts)
    print(f"{report.rows} rows: {used} would be used in {clips} clips, {len(report.problems)} would not")
    print(f"disk     {sum(sizes.values()) / 2**30:.2f} GiB of media; whether they decode, only an import tells")
    print("\n".join(examples[:3]))
    for reason, count in Counter(problem.reason for problem in report.problems).most_common():
        print(f"{count:>8} x {reason}")
        print_problems([problem for problem in report.problems if problem.reason == reason][:2])
    _print_remarks(report)


def _print_remarks(report: ImportReport) -> None:
    for column, count in report.ignored.most_common():
        print(f"ignored  {column} of {count} rows")
    if report.loose_tags:
        print(f"warning: {report.loose_tags} questions have <video> without a newline behind it; accepted")


def print_problems(problems: Sequence[Problem], *, most: int = 20) -> None:
    """The first problems, a line each; signs that would steer a terminal are shown as escapes."""
    for problem in problems[:most]:
        line = f"  {problem.key}: {problem.reason}: {problem.detail}"
        print("".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line))
    if len(problems) > most:
        print(f"  ... and {len(problems) - most} more")
