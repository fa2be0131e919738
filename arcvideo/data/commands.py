"""The subcommands of `python -m arcvideo.data.shards`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from arcvideo.data.importers import IMPORTERS, ImportReport, ImportRequest
from arcvideo.data.index import ShardIndex, ensure_indexes
from arcvideo.data.inspection import View, describe, look, picture, view_table
from arcvideo.data.members import Problem, expand_shards
from arcvideo.data.pack import best_fit
from arcvideo.data.settings import STYLES, WORDINGS, MediaLayout
from arcvideo.data.shards import write_shards
from arcvideo.media.clip import read_clip
from arcvideo.media.errors import MediaError
from arcvideo.media.read import media_digest


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m arcvideo.data.shards", description="Work with shards of clips.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("index", _index, "make the sidecar indexes that training needs (done by itself when missing)"),
        ("verify", _verify, "hash and decode every clip; exit status 1 when something is wrong"),
        ("stats", _stats, "count clips, tasks, seconds, tokens and pack fill"),
        ("inspect", _inspect, "show a clip as the model will see it"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("shards", nargs="+", help="tar files, {000..011} braces or * globs")
        command.set_defaults(run=run)
        if name == "index":
            command.add_argument("--workers", type=int, default=os.cpu_count() or 1)
        if name in ("stats", "inspect"):
            _add_view(command)
        if name == "inspect":
            command.add_argument("--key", help="record key; default: the first")
            command.add_argument("--image", type=Path, help="also draw frames and spectrogram: a PNG file, or a folder")
        if name == "stats":
            command.add_argument("--token-budget", type=int, default=2048)
    _add_import(commands)
    return top


def _add_view(command: argparse.ArgumentParser) -> None:
    layout = MediaLayout(image_size=128, mel_bins=80, audio_positions=400)
    command.add_argument(
        "--tokenizer", type=Path, help="folder of a tokenizer; default: one made from the shard's text"
    )
    command.add_argument("--style", choices=STYLES, default="plain")
    command.add_argument("--wording", choices=WORDINGS, default="arc")
    for name in ("image_size", "mel_bins", "audio_positions", "max_frames"):
        command.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(layout, name))


def _add_import(commands: Any) -> None:
    text = "turn an annotation file and its media into shards"
    command = commands.add_parser("import", help=text, description=text)
    command.add_argument("--format", choices=sorted(IMPORTERS), required=True)
    command.add_argument("--annotations", type=Path, required=True, help="JSON lines: id, video, conversations")
    command.add_argument("--videos", type=Path, required=True, help="folder of the media files")
    command.add_argument("--audio", type=Path, help="folder of sound files, used for videos without sound")
    command.add_argument("--task", choices=("summary", "qa"), default="summary")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--per-shard", type=int, default=1000)
    command.set_defaults(run=_import)


def _open(options: argparse.Namespace, *, workers: int = 1) -> list[ShardIndex]:
    paths = [path for pattern in options.shards for path in expand_shards(pattern)]
    return ensure_indexes(paths, workers=workers)


def _index(options: argparse.Namespace) -> int:
    for index in _open(options, workers=options.workers):
        meta = index.meta
        print(f"{index.shard}: {meta['clips']} clips, {meta['items']} items, {meta['quarantined']} quarantined")
        _print_problems(index.problems())
    return 0


def _verify(options: argparse.Namespace) -> int:
    bad = 0
    for index in _open(options):
        problems = [*index.problems(), *_decoding_problems(index)]
        print(f"{index.shard}: {len(index.clips)} clips checked, {len(problems)} problems")
        _print_problems(problems)
        bad += len(problems)
    return 1 if bad else 0


def _decoding_problems(index: ShardIndex) -> Iterator[Problem]:
    layout = MediaLayout(image_size=64, mel_bins=80)
    for row in tqdm(range(len(index.clips)), desc=index.shard.name, unit="clip", leave=False):
        if not index.clips[row]["media_size"]:
            continue
        try:
            data, sound = index.media_bytes(row)
            if media_digest(data, sidecar_audio=sound) != bytes(index.clips[row]["digest"]):
                raise MediaError("corrupt", "the bytes are not those that were indexed")
            read_clip(data, name=index.key(row), layout=layout, sidecar_audio=sound)
        except (MediaError, OSError) as error:
            reason = getattr(error, "reason", "unreadable")
            yield Problem(key=index.key(row), stage="media", reason=reason, detail=str(error))


def _stats(options: argparse.Namespace) -> int:
    indexes = _open(options)
    clips = sum(len(index.clips) for index in indexes)
    seconds = np.concatenate([index.clips["duration"] for index in indexes])
    print(f"{len(indexes)} shards, {clips} clips, {seconds.sum() / 3600:.2f} hours")
    print(f"seconds  {_quantiles(seconds)}")
    view = _view(options, indexes[0])
    tasks: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    lengths = []
    for index in indexes:
        items = np.asarray(index.items)
        for tagset, count in zip(*np.unique(items["tagset"], return_counts=True), strict=True):
            tags.update(dict.fromkeys(index.tagsets[tagset], int(count)))
        table = view_table(index, view=view)
        tasks.update(table.tasks[task] for task in table.item_task)
        media = table.media_tokens[table.item_clip]
        lengths.append(np.where(media > 0, 1 + table.item_before + media, 0) + table.item_branch)
    tokens = np.concatenate(lengths)
    print(f"tokens   {_quantiles(tokens)} (an item with its own prefix)")
    fitting = tokens[tokens <= options.token_budget]
    if len(fitting):
        fill = fitting.sum() / (len(best_fit(fitting, budget=options.token_budget)) * options.token_budget)
        print(f"packing  {fill:.1%} full at {options.token_budget} tokens, {len(tokens) - len(fitting)} items too long")
    for name, counter in (("task", tasks), ("tag", tags)):
        for value, count in counter.most_common():
            print(f"{name:<8} {value:<24} {count}")
    _print_problems([problem for index in indexes for problem in index.problems()])
    return 0


def _quantiles(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, [0, 0.5, 1]) if len(values) else (0, 0, 0)
    return f"min {low:.1f}  median {middle:.1f}  max {high:.1f}"


def _inspect(options: argparse.Namespace) -> int:
    for index in _open(options):
        looked = look(index, view=_view(options, index), key=options.key)
        for line in describe(looked):
            print(line)
        if options.image is not None:
            target = options.image
            if target.is_dir():
                target = target / f"{index.key(looked.row).replace('/', '_')}.png"
            picture(looked).save(target)
            print(f"picture  {target}")
    return 0


def _view(options: argparse.Namespace, index: ShardIndex) -> View:
    from arcvideo.model.tokenizer import build_tiny_tokenizer, load_tokenizer  # imports transformers

    if options.tokenizer is not None:
        tokenizer = load_tokenizer(options.tokenizer)
    else:
        corpus = (text for row in range(min(len(index.clips), 200)) for text in _texts(index.record(row)))
        tokenizer = build_tiny_tokenizer(corpus)
    layout = MediaLayout(
        image_size=options.image_size,
        mel_bins=options.mel_bins,
        audio_positions=options.audio_positions,
        max_frames=options.max_frames,
    )
    return View(
        layout=layout,
        tokenizer=tokenizer,
        style=options.style,
        wording=options.wording,
        colour=sys.stdout.isatty(),
    )


def _texts(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _import(options: argparse.Namespace) -> int:
    report = ImportReport()
    request = ImportRequest(
        annotations=options.annotations, videos=options.videos, audio=options.audio, task=options.task
    )
    records = tqdm(IMPORTERS[options.format](request, report=report), desc="import", unit="clip", leave=False)
    paths: list[Path] = []
    try:
        paths = write_shards(records, out=options.out, per_shard=options.per_shard)
    except ValueError:
        _print_problems(report.problems)
        raise
    rows = [json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in report.problems]
    (options.out / "import-quarantine.jsonl").write_text("".join(rows), encoding="utf-8")
    print(f"{report.rows} rows: {report.used} used in {len(paths)} shards, {len(report.problems)} quarantined")
    if report.loose_tags:
        print(f"warning: {report.loose_tags} questions have <video> without a newline behind it; accepted")
    _print_problems(report.problems)
    ensure_indexes(paths)
    return 0


def _print_problems(problems: list[Problem], *, most: int = 20) -> None:
    for problem in problems[:most]:
        print(f"  {problem.key}: {problem.reason}: {problem.detail}")
    if len(problems) > most:
        print(f"  ... and {len(problems) - most} more")
