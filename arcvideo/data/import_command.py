"""`python -m arcvideo.data.shards import`."""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import braceexpand

from arcvideo.data.importers import IMPORTERS, Draft, Drafts, ImportReport, ImportRequest
from arcvideo.data.importers.conversations import MetaEntry, meta_entries
from arcvideo.data.importers.ledger import SUFFIX, Ledger, OtherImport, source_state
from arcvideo.data.importers.sources import check_stills, is_there, label_of, size_of
from arcvideo.data.importers.write import BYTES_PER_SHARD, room_needed, room_of_shard, write_drafts
from arcvideo.files import write_lines
from arcvideo.media.errors import MediaError
from arcvideo.progress import counted
from arcvideo.shards.index import ensure_indexes
from arcvideo.shards.members import Problem

META = "arc-meta"
HELD_OUT = "held-out"
_COLUMNS = 20
"""Names of columns that are told."""
_LINE_SECONDS = 10.0
"""Between two lines about progress in a log."""


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
    command.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that examine media, at most one a core"
    )
    command.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    if options.per_shard < 1 or options.workers < 0:
        raise ValueError("--per-shard must be at least 1 and --workers at least 0")
    if Path(options.name).name != options.name:
        raise ValueError(f"--name {options.name}: a name without slashes; --out says where")
    if options.map and options.format not in ("table", "video-chatgpt", "video-mme", "daily-omni"):
        raise ValueError(f"--map: columns are for tables; give --format table instead of {options.format}")
    held_out_share(options.held_out)
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
        )
        _import_one(options, request, kind=options.format, name=options.name)
        return 0
    for entry in [entry for path in paths for entry in meta_entries(path, task=options.task)]:
        _import_one(options, entry.request, kind="arc", name=entry.name)
        print(f"  {_mixture_line(options.out, entry)}")
    return 0


def _expanded(pattern: str) -> list[Path]:
    paths: list[Path] = []
    for part in braceexpand.braceexpand(pattern):
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


def is_held_out(clip: str, *, share: float) -> bool:
    """Return whether a clip, of that name or content, is among the share held out, whatever other clips there are."""
    return int.from_bytes(hashlib.sha256(clip.encode("utf-8", "surrogatepass")).digest()[:8], "big") < share * 2**64


def _mixture_line(out: Path, entry: MetaEntry) -> str:
    """Return the source of a mixture that does what `repeat_time` asked for."""
    shards = f"data.sources.{entry.name}.shards={out}/{entry.name}-*.tar"
    how = "fraction" if entry.repeat < 1 else "weight"
    return shards if entry.repeat == 1 else f"{shards} data.sources.{entry.name}.{how}={entry.repeat:g}"


def _import_one(options: argparse.Namespace, request: ImportRequest, *, kind: str, name: str) -> None:
    report = ImportReport()
    drafts = IMPORTERS[kind](request, report=report)
    if options.dry_run:
        _show_plan(drafts, report=report)
        return
    paths: list[Path] = []
    try:
        ledgers = [
            Ledger(options.out / f"{part}{SUFFIX}", request=_asked(options, request, kind=kind))
            for part in _parts(drafts, name=name, share=held_out_share(options.held_out))
        ]
        _check_room(options, drafts, ledgers=ledgers)
        for number, ledger in enumerate(ledgers):
            paths += _written(options, drafts, held_out=number == 1, ledger=ledger, report=report)
    except BaseException as error:  # also when no row can be used: then the list is wanted most
        with suppress(OSError):  # on a full disk what was wrong before matters more
            if not isinstance(error, OtherImport):  # whose list lies there
                _list_problems(options.out, name=name, report=report)
        if isinstance(error, ValueError):
            print_problems(report.problems)
        raise
    _list_problems(options.out, name=name, report=report)
    print(f"{report.rows} rows: {report.used} used in {len(paths)} shards, {len(report.problems)} quarantined")
    assert report.rows == report.used + len(report.problems)
    _print_remarks(report)
    print_problems(report.problems)
    ensure_indexes(paths, workers=_workers(options))


def _list_problems(out: Path, *, name: str, report: ImportReport) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_lines(out / f"{name}.quarantine.jsonl", map(asdict, report.problems))


def _asked(options: argparse.Namespace, request: ImportRequest, *, kind: str) -> dict[str, Any]:
    """Return what decides which shards an import writes, as its ledger keeps it."""
    return {
        "format": kind,
        "annotations": source_state(request.annotations),
        "task": request.task,
        "map": dict(request.columns),
        "encoding": request.encoding,
        "outside": request.outside,
        "audio": request.audio is not None,
        "held-out": held_out_share(options.held_out),
        "per-shard": options.per_shard,
    }


def _workers(options: argparse.Namespace) -> int:
    """Return how many processes examine media: more than cores would only wait for each other."""
    return min(int(options.workers), len(os.sched_getaffinity(0)))


def _parts(drafts: Drafts, *, name: str, share: float) -> list[str]:
    """Return the names of the shards: one, or that of those to train on and that of those held out."""
    if not share:
        return [name]
    clips, count = drafts.spool.name_clips(), len(drafts)
    held = len({draft.clip for draft in drafts if is_held_out(draft.clip, share=share)})
    if not held or held == clips:
        raise ValueError(f"--held-out {share:.0%} of {clips} clips leaves one side without any; change the share")
    if clips < count:
        print(f"held out by content: {count} records are about {clips} clips, each on one side under all its names")
    return [name, f"{name}-{HELD_OUT}"]


def _side(options: argparse.Namespace, drafts: Drafts, *, held_out: bool) -> Iterator[Draft]:
    """Yield the drafts that are held out, or the others."""
    share = held_out_share(options.held_out)
    return (draft for draft in drafts if is_held_out(draft.clip, share=share) == held_out)


def _written(
    options: argparse.Namespace, drafts: Drafts, *, held_out: bool, ledger: Ledger, report: ImportReport
) -> list[Path]:
    name = ledger.path.name.removesuffix(SUFFIX)
    total = len(drafts)
    if held_out_share(options.held_out):
        total = sum(1 for _ in _side(options, drafts, held_out=held_out))
    with ledger, counted(what=f"import {name}", total=total, unit="clip", seconds=_LINE_SECONDS) as advance:
        return write_drafts(
            _side(options, drafts, held_out=held_out),
            ledger=ledger,
            name=name,
            per_shard=options.per_shard,
            workers=_workers(options),
            report=report,
            advance=advance,
        )


def _check_room(options: argparse.Namespace, drafts: Drafts, *, ledgers: Sequence[Ledger]) -> None:
    """Say how much disk the rest of the shards needs, and complain before the first byte when there is less."""
    out: Path = options.out
    need, clips = 0, 0
    for number, ledger in enumerate(ledgers):
        for draft in islice(_side(options, drafts, held_out=number == 1), ledger.drafts, None):
            need += room_needed(draft)
            clips += 1
    if clips:
        shards = need // BYTES_PER_SHARD + clips // options.per_shard + 1 + len(ledgers)
        need += shards * room_of_shard()
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    torn = (size_of(path) for ledger in ledgers for path in ledger.torn())
    free = shutil.disk_usage(existing).free + sum(torn)
    print(f"disk     {_gib(need)} needed at most for {clips} clips, {_gib(free)} free in {out}")
    if need > free:
        raise ValueError(
            f"--out {out}: {_gib(need)} needed, {_gib(free)} free: make room for {_gib(need - free)}, or choose "
            "another disk"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def _show_plan(drafts: Drafts, *, report: ImportReport) -> None:
    """Print what an import would use, without reading media."""
    used, clips, size, examples = 0, 0, 0, list[str]()
    for draft in drafts:
        media = [medium for medium in (draft.media, draft.sound, *draft.more) if medium is not None]
        reason = _why_not(draft)
        for label in draft.labels if reason else ():
            report.refuse(label, reason="no_media", detail=reason)
        if not reason:
            used, clips = used + len(draft.items), clips + 1
            pairs = zip(draft.labels, draft.items, strict=True)
            examples += [f"  {label}: {json.dumps(item)[:150]}" for label, item in islice(pairs, 3 - len(examples))]
        size += sum(map(size_of, media))
    print(f"{report.rows} rows: {used} would be used in {clips} clips, {len(report.problems)} would not")
    print(f"disk     {_gib(size)} of media; whether they decode, only an import tells")
    print("\n".join(examples))
    for reason, count in report.problems.reasons.most_common():
        print(f"{count:>8} x {reason}")
        print_problems(islice((problem for problem in report.problems if problem.reason == reason), 2))
    _print_remarks(report)


def _why_not(draft: Draft) -> str:
    """Return why the media of a draft are of no use, as far as that is seen without decoding; "" for nothing."""
    try:
        for medium in (draft.media, *draft.more):
            if medium is not None and not is_there(medium):
                return f"{label_of(medium)}: no such file"
            if medium is not None:
                check_stills(medium)
    except MediaError as error:
        return error.detail
    return ""


def _print_remarks(report: ImportReport) -> None:
    for column, count in report.ignored.most_common(_COLUMNS):
        print(f"ignored  {column} of {count} rows")
    if len(report.ignored) > _COLUMNS:
        print(f"ignored  {len(report.ignored) - _COLUMNS} further columns")
    if report.loose_tags:
        print(f"warning: {report.loose_tags} questions have <video> without a newline behind it; accepted")


def print_problems(problems: Iterable[Problem], *, most: int = 20) -> None:
    """The first problems, a line each; signs that would steer a terminal are shown as escapes."""
    count = 0
    for problem in problems:
        count += 1
        if count <= most:
            line = f"  {problem.key}: {problem.reason}: {problem.detail}"
            print("".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line))
    if count > most:
        print(f"  ... and {count - most} more")
