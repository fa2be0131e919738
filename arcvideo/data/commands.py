"""The subcommands of `python -m arcvideo.data.shards`."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arcvideo.data import plots
from arcvideo.data.import_command import add_import, print_problems
from arcvideo.data.overlap import add_overlap
from arcvideo.data.split import add_split
from arcvideo.data.tag import add_tag
from arcvideo.data.transcribe import add_transcribe
from arcvideo.layout import MediaLayout
from arcvideo.media.errors import MediaError
from arcvideo.media.read import media_digest
from arcvideo.planning.pack import best_fit
from arcvideo.planning.repeated import repeated_keys
from arcvideo.planning.settings import STYLES, WORDINGS
from arcvideo.progress import watched
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ShardIndex, ensure_indexes
from arcvideo.shards.members import Problem
from arcvideo.tasks import RecordError

if TYPE_CHECKING:  # these load torch, which the import and every --help do without
    from arcvideo.data.inspection import View
    from arcvideo.types import Clip


_TEXT, _CORPUS = 2_000, 1 << 20
"""Characters of a text, and of all, that a tokenizer for looking is made from."""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="arcvideo shards", description="Work with shards of clips.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("index", _index, "make the sidecar indexes that training needs (done by itself when missing)"),
        ("verify", _verify, "hash and decode every clip; exit status 1 when something is wrong"),
        ("stats", _stats, "count clips, tasks, seconds, tokens and pack fill"),
        ("inspect", _inspect, "show a clip as the model will see it"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("shards", nargs="+", help="tar files or URLs of them, {000..011} braces or * globs")
        command.add_argument("--cache", help="folder for copies of remote shards")
        command.set_defaults(run=run)
        if name == "index":
            command.add_argument("--workers", type=int, default=os.cpu_count() or 1)
        if name in ("stats", "inspect"):
            _add_view(command)
        if name == "inspect":
            command.add_argument("--key", help="record key; default: the first")
            command.add_argument("--token-budget", type=int, help="show as many frames as fit this; default: all")
            command.add_argument("--ids", action="store_true", help="token ids instead of text")
            command.add_argument("--image", type=Path, help="draw frames and spectrogram too: a .png file or a folder")
        if name == "stats":
            command.add_argument("--token-budget", type=int, default=2048)
            command.add_argument("--plot", type=Path, help="also draw it, into this PNG file")
    add_import(commands)
    add_transcribe(commands)
    add_tag(commands)
    add_split(commands)
    add_overlap(commands)
    return top


def _add_view(command: argparse.ArgumentParser) -> None:
    layout = MediaLayout(image_size=128, mel_bins=80, audio_positions=400, audio_pooling=10)
    command.add_argument(
        "--tokenizer", type=Path, help="folder of a tokenizer; default: one made from the shard's text"
    )
    command.add_argument("--style", choices=STYLES, default="plain")
    command.add_argument("--wording", choices=WORDINGS, default="arc")
    for name in ("image_size", "mel_bins", "audio_positions", "audio_pooling", "max_frames"):
        command.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(layout, name))


def _open(options: argparse.Namespace, *, workers: int = 1) -> list[ShardIndex]:
    cache = ShardCacheSettings(path=options.cache)
    paths = [path for pattern in options.shards for path in expand_shards(pattern, cache=cache)]
    return ensure_indexes(paths, workers=workers)


def _index(options: argparse.Namespace) -> int:
    if options.workers < 0:
        raise ValueError(f"--workers {options.workers}: must be 0 or more")
    for index in _open(options, workers=options.workers):
        meta = index.meta
        print(f"{index.shard}: {meta['clips']} clips, {meta['items']} items, {meta['quarantined']} quarantined")
        _print_unheard([index])
        print_problems(index.problems())
    return 0


def _print_unheard(indexes: Sequence[ShardIndex]) -> None:
    """Say how much sound is left out because the picture ends before it (docs/modalities.md)."""
    clips = sum(index.meta["unheard_clips"] for index in indexes)
    if clips:
        seconds = sum(index.meta["unheard_seconds"] for index in indexes)
        print(f"unheard  {seconds:.0f} s of sound behind the picture's end in {clips} clips: no model hears them")


def _verify(options: argparse.Namespace) -> int:
    indexes = _open(options)
    repeated = list(repeated_keys(indexes).problems)
    print_problems(repeated)
    bad = len(repeated)
    for index in indexes:
        problems = [*index.problems(), *_decoding_problems(index)]
        print(f"{index.shard}: {len(index.clips)} clips checked, {len(problems)} problems")
        print_problems(problems)
        bad += len(problems)
    return 1 if bad else 0


def _decoding_problems(index: ShardIndex) -> Iterator[Problem]:
    layout = MediaLayout(image_size=64, mel_bins=80)
    from arcvideo.decoding.pool import MediaPool

    with MediaPool() as pool:  # a file that hangs or crashes a decoder is a finding like any other
        yield from _examined(index, read=partial(pool.read_clip, layout=layout))


def _examined(index: ShardIndex, *, read: Callable[..., Clip]) -> Iterator[Problem]:
    for row in watched(range(len(index.clips)), what=index.shard.name, total=len(index.clips), unit="clip"):
        try:
            index.text(row)
            for part, medium in enumerate(index.media(row)):
                data, sound = index.media_bytes(row, part=part)
                if media_digest(data, sidecar_audio=sound) != bytes(medium["digest"]):
                    raise MediaError("corrupt", "the bytes are not those that were indexed")
                read(data, name=index.key(row), sidecar_audio=sound)
        except (MediaError, RecordError, OSError) as error:
            reason = getattr(error, "reason", "unreadable")
            stage = "record" if isinstance(error, RecordError) else "media"
            yield Problem(key=index.key(row), stage=stage, reason=reason, detail=str(error))


def _stats(options: argparse.Namespace) -> int:
    from arcvideo.data.inspection import view_table

    indexes = _open(options)
    clips = sum(len(index.clips) for index in indexes)
    seconds = np.concatenate([index.clips["duration"] for index in indexes])
    print(f"{len(indexes)} shards, {clips} clips, {seconds.sum() / 3600:.2f} hours")
    print(f"seconds  {_quantiles(seconds)}")
    view = _view(options, indexes[0])
    tasks: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    lengths = []
    unrendered: list[Problem] = []
    for index in indexes:
        items = np.asarray(index.items)
        for tagset, count in zip(*np.unique(items["tagset"], return_counts=True), strict=True):
            tags.update(dict.fromkeys(index.tagsets[tagset], int(count)))
        table = view_table(index, view=view)
        unrendered += [problem for problem in table.quarantined if problem.stage == "tokens"]
        tasks.update(table.tasks[task] for task in table.item_task)
        lengths.append(table.tokens)
    tokens = np.concatenate(lengths)
    print(f"tokens   {_quantiles(tokens)} (an item with its own prefix)")
    fitting = tokens[tokens <= options.token_budget]
    packs = best_fit(fitting, budget=options.token_budget)
    fill = np.array([fitting[pack].sum() / options.token_budget for pack in packs])
    if len(fitting):
        long = len(tokens) - len(fitting)
        print(f"packing  {fill.mean():.1%} full at {options.token_budget} tokens, {long} items too long")
    for name, counter in (("task", tasks), ("tag", tags)):
        for value, count in counter.most_common():
            print(f"{name:<8} {value:<24} {count}")
    _print_unheard(indexes)
    print_problems([*(problem for index in indexes for problem in index.problems()), *unrendered])
    if options.plot is not None:
        panels = [
            plots.histogram(seconds, title="clips by length", unit="s"),
            plots.histogram(tokens, title="items by tokens", unit="tokens"),
            plots.counts(tasks, title="items by task"),
            plots.histogram(100 * fill, title=f"packs of {options.token_budget} tokens by fill", unit="%"),
        ]
        plots.draw(panels, path=options.plot)
        print(f"drawn    {options.plot}")
    return 0


def _quantiles(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, [0, 0.5, 1]) if len(values) else (0, 0, 0)
    return f"min {low:.1f}  median {middle:.1f}  max {high:.1f}"


def _inspect(options: argparse.Namespace) -> int:
    from arcvideo.data.inspection import describe, look, picture

    for index in _open(options):
        looked = look(index, view=_view(options, index, token_budget=options.token_budget), key=options.key)
        for line in describe(looked):
            print(line)
        if options.image is not None:
            target = options.image
            if not target.suffix:
                target.mkdir(parents=True, exist_ok=True)
                target = target / f"{index.key(looked.row).replace('/', '_')}.png"
            picture(looked).save(target)
            print(f"picture  {target}")
    return 0


def _whole_records(index: ShardIndex, *, most: int) -> Iterator[dict[str, Any]]:
    for row in range(min(len(index.clips), most)):
        with suppress(RecordError):  # its items are counted as lost where lengths are
            yield index.record(row)


def _view(options: argparse.Namespace, index: ShardIndex, *, token_budget: int | None = None) -> View:
    from arcvideo.data.inspection import View
    from arcvideo.model.disk.tokenizer import build_tiny_tokenizer, load_tokenizer

    if options.tokenizer is not None:
        tokenizer = load_tokenizer(options.tokenizer)
    else:
        texts = (text for record in _whole_records(index, most=200) for text in _texts(record))
        tokenizer = build_tiny_tokenizer(_little(texts))
    layout = MediaLayout(
        image_size=options.image_size,
        mel_bins=options.mel_bins,
        audio_positions=options.audio_positions,
        audio_pooling=options.audio_pooling,
        max_frames=options.max_frames,
    )
    return View(
        layout=layout,
        tokenizer=tokenizer,
        style=options.style,
        wording=options.wording,
        token_budget=token_budget,
        colour=sys.stdout.isatty(),
        ids=getattr(options, "ids", False),
    )


def _little(texts: Iterable[str]) -> Iterator[str]:
    """Yield the beginnings of the first texts: a tokenizer learns a word of megabytes in hours."""
    left = _CORPUS
    for text in texts:
        yield text[: min(_TEXT, left)]
        left -= len(text[:_TEXT])
        if left <= 0:
            return


def _texts(value: Any) -> Iterator[str]:
    """Yield all strings in a JSON value."""
    if isinstance(value, str):
        yield value.encode("utf-8", "replace").decode()  # a refused item may hold half a character
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
