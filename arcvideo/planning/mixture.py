"""From settings to tables: which clips and items of each source may be drawn, and how long they are in tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcvideo.layout import MediaLayout
from arcvideo.planning.repeated import repeated_keys
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.planning.table import (
    CLIP_ROW,
    ITEM_ROW,
    Ints,
    SourceTable,
    TableWriter,
    frame_counts,
    frame_limits,
    frame_shares,
    prefix_tokens,
)
from arcvideo.render import media_length, media_lengths
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import OpenedLater, ShardIndex, content_digest, ensure_indexes, index_folder, index_place
from arcvideo.shards.lengths import Lengths, all_lengths, counts_name, seal_of
from arcvideo.shards.locks import locked
from arcvideo.shards.members import Problem
from arcvideo.shards.rows import forget, open_rows, write_rows
from arcvideo.tasks import TASKS

_FORMAT = 2
"""Raised when what stored tables hold, or how it follows from indexes and settings, changes."""
STORED_ITEMS = 1 << 20
STORED_SHARDS = 1 << 8
"""Tables of more than these are written once and mapped: making them anew in each rank takes time and memory."""
_KEPT_TABLES = 16
"""Of one folder of shards: those used last."""
_TABLES = ".tables"
"""Folder of stored tables, beside a source's first shard."""
_DTYPES = {"clips": CLIP_ROW, "items": ITEM_ROW, "by_tokens": np.dtype("<u4")}


@dataclass(kw_only=True)
class _Gathered:
    """Rows of the shards so far; C clips, I items."""

    clips: int = 0
    """Usable ones."""
    items: int = 0
    met: int = 0
    """Clips of the indexes, usable or not."""
    seen: int = 0
    """Items of the indexes."""
    over: int = 0
    """Items over the budget."""
    worst: tuple[int, str] = (0, "")
    """Tokens and key of the longest of them."""
    shortened: int = 0


def open_mixture(
    settings: DataSettings,
    *,
    layout: MediaLayout,
    tokenizer: Any,
    supervised: bool = True,
    pairs: bool = False,
    progress: bool = True,
    index_workers: int = 1,
) -> list[SourceTable]:
    """Return the table of every source, in the order of the settings; missing indexes are built.

    Args:
        supervised: False also admits items without reasoning to sources of style think, as prompts.
        pairs: only items that have a rejected answer, which counts towards their length.

    Raises:
        ValueError: a source without usable items, a wrong path or task name, a sample over the budget.
    """
    if not settings.sources:
        raise ValueError("data.sources is empty: name at least one source")
    tables = []
    for name, source in settings.sources.items():
        about: dict[str, Any] = {"source": source, "settings": settings, "layout": layout, "supervised": supervised}
        counting: dict[str, Any] = {"style": source.style, "wording": settings.wording, "pairs": pairs}
        try:
            shards = expand_shards(source.shards, cache=settings.shard_cache)
            counts = counts_name(tokenizer, **counting)
            stored = _stored(name, shards, counts=counts, **about)
            if stored is None:
                reading: dict[str, Any] = {"workers": index_workers, "progress": progress}
                stored = _made(name, shards, counts=counts, tokenizer=tokenizer, counting=counting, **reading, **about)
        except ValueError as error:
            raise ValueError(f"data.sources.{name}: {error}") from error
        tables.append(stored)
    return tables


def index_digest(tables: Sequence[SourceTable]) -> str:
    """Hex digest of the content of all shards of all sources: what a stage's identity calls its data."""
    return content_digest((table.name, table.indexes) for table in tables)


def source_table(
    name: str,
    indexes: Sequence[ShardIndex],
    lengths: Sequence[Lengths],
    *,
    source: SourceSettings,
    settings: DataSettings,
    layout: MediaLayout,
    supervised: bool,
    writer: TableWriter | None = None,
) -> SourceTable:
    """Return the table of one source, from its indexes and the token counts beside them.

    Args:
        writer: takes the rows, of which the table then has none in memory.

    Raises:
        ValueError: no usable item, a wrong task name, a sample over the budget.
    """
    tasks = _tasks(indexes, source=source)
    repeated = repeated_keys(indexes)
    done, parts = _Gathered(), []
    about: dict[str, Any] = {"tasks": tasks, "source": source, "settings": settings, "layout": layout}
    for number, (index, counted) in enumerate(zip(indexes, lengths, strict=True)):
        lo, hi = np.searchsorted(repeated.clips, [done.met, done.met + len(index.clips)])
        taken = repeated.clips[lo:hi] - done.met
        part = _rows_of_shard(number, index, counted, repeated=taken, done=done, supervised=supervised, **about)
        if writer is None:
            parts.append(part)
        else:
            writer.take(*part, settings=source)
    if done.over and settings.over_budget == "error":
        raise ValueError(
            f"{done.over} items exceed data.token_budget={settings.token_budget}; the longest, {done.worst[1]}, needs "
            f"{done.worst[0]} tokens. Raise the budget, or set data.over_budget to fewer_frames or drop"
        )
    if not done.items:
        damage = next((problem for index in indexes for problem in index.problems()), None)
        first = f"; {damage.shard}: {damage.key}: {damage.reason}: {damage.detail}" if damage else ""
        raise ValueError(
            f"no usable item: {done.seen} items, none passes tasks={list(source.tasks)}, tags={source.tags}, "
            f"style={source.style}, modality={source.modality} and the budget of {settings.token_budget} tokens{first}"
        )
    problems = [*(problem for index in indexes for problem in index.problems()), *repeated.problems]
    for index, counted in zip(indexes, lengths, strict=True):
        problems += [replace(problem, shard=index.shard.name) for problem in counted.problems]
    clips, items = (
        writer.rows.written(table) if writer is not None else np.concatenate([part[at] for part in parts])
        for at, table in enumerate(("clips", "items"))
    )
    return SourceTable(
        name=name,
        settings=source,
        indexes=tuple(indexes),
        clip_rows=clips,
        item_rows=items,
        tasks=tasks,
        quarantined=tuple(problems),
        dropped=done.over,
        shortened=done.shortened,
        passes=source.weight,
    )


def _rows_of_shard(
    number: int,
    index: ShardIndex,
    counted: Lengths,
    *,
    repeated: Ints,
    done: _Gathered,
    tasks: tuple[str, ...],
    source: SourceSettings,
    settings: DataSettings,
    layout: MediaLayout,
    supervised: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a shard's usable clips and items, and add them to what is done."""
    facts, items, lengths = np.asarray(index.clips), np.asarray(index.items), counted.rows
    clip, has_media = items["clip"].astype(np.int64), facts["media_size"] > 0
    keep = _usable(index, source=source, repeated=repeated, first=done.met)[clip]
    keep &= _wanted(index, source=source)[items["task"], items["tagset"]] & (lengths["branch"] > 0)
    keep &= items["think"] | (not supervised or source.style == "plain")
    before, branch = lengths["before"].astype(np.int64), lengths["branch"].astype(np.int64)
    several = _several_media(index)
    seconds = np.array(facts["duration"])
    for row, media in several.items():  # each second that one of them begins has a frame
        seconds[row] = frame_counts(np.array(media), max_frames=np.inf).sum()
    limit = frame_limits(seconds, clip=clip[keep], text=(1 + before + branch)[keep], settings=settings, layout=layout)
    frames = np.where(has_media, frame_counts(seconds, max_frames=limit), 0)
    media_tokens = np.where(has_media, media_length(frames, layout=layout), 0)
    for row, media in several.items():
        shares = frame_shares(media, limit=int(limit[row]))
        frames[row], media_tokens[row] = sum(shares), media_lengths(shares, layout=layout)
    needed = prefix_tokens(before, media_tokens[clip]) + branch
    over = np.flatnonzero(keep & (needed > settings.token_budget))
    if len(over):
        worst = over[np.argmax(needed[over])]
        key = f"{index.key(int(clip[worst]))}/{items['number'][worst]}"
        done.worst = max(done.worst, (int(needed[worst]), key), key=lambda pair: pair[0])
        keep[over] = False
    kept = np.flatnonzero(keep)
    clips, item_clip = np.unique(clip[kept], return_inverse=True)
    task = np.array([tasks.index(name) for name in index.tasks], dtype=np.int64)[items["task"][kept]]
    same = np.unique(item_clip * len(tasks) + task, return_inverse=True, return_counts=True)
    weights = np.array([source.tasks.get(name, 1.0) for name in tasks])
    item_rows = np.zeros(len(kept), dtype=ITEM_ROW)
    item_rows["row"], item_rows["task"], item_rows["group"] = kept, task, lengths["group"][kept]
    item_rows["before"], item_rows["branch"] = before[kept], branch[kept]
    item_rows["weight"] = weights[task] / same[2][same[1]]
    counts = np.bincount(item_clip, minlength=len(clips))
    clip_rows = np.zeros(len(clips), dtype=CLIP_ROW)
    clip_rows["item_start"], clip_rows["item_count"] = done.items + np.cumsum(counts) - counts, counts
    clip_rows["shard"], clip_rows["row"] = number, clips
    clip_rows["frames"], clip_rows["frame_limit"] = frames[clips], limit[clips]
    clip_rows["media_tokens"] = media_tokens[clips]
    clip_rows["both"] = (facts["has_video"] & (facts["sound_samples"] > 0))[clips]
    done.clips, done.items = done.clips + len(clips), done.items + len(kept)
    done.met, done.seen, done.over = done.met + len(facts), done.seen + len(items), done.over + len(over)
    done.shortened += int((has_media & (limit < layout.max_frames))[clips].sum())
    return clip_rows, item_rows


def _several_media(index: ShardIndex) -> dict[int, list[float]]:
    """Return row -> seconds of each medium, of the records that have several."""
    seconds: dict[int, list[float]] = {}
    for part in index.parts if index.meta["parts"] else ():
        seconds.setdefault(int(part["clip"]), []).append(float(part["duration"]))
    return seconds


def _usable(index: ShardIndex, *, source: SourceSettings, repeated: Ints, first: int) -> npt.NDArray[np.bool_]:
    """Return (C,) clips of a shard that the source shows at all; `first` is the number of the first in the source."""
    facts = index.clips
    usable = {"both": np.ones(len(facts), bool), "video": facts["has_video"], "audio": facts["sound_samples"] > 0}
    chosen = usable[source.modality] & (first + np.arange(len(facts)) < (source.max_clips or np.inf))
    chosen[repeated] = False
    return chosen & _sampled(index, fraction=source.fraction) if source.fraction < 1 else chosen


def _wanted(index: ShardIndex, *, source: SourceSettings) -> npt.NDArray[np.bool_]:
    """Return (tasks, tagsets) of a shard that the source draws."""
    tasks = [source.tasks.get(task, 0.0 if source.tasks else 1.0) > 0 for task in index.tasks]
    tagged = [set(source.tags) <= set(tags) for tags in index.tagsets]
    return np.logical_and.outer(np.array(tasks, dtype=bool), np.array(tagged, dtype=bool))


def _sampled(index: ShardIndex, *, fraction: float) -> npt.NDArray[np.bool_]:
    """Return (C,) about this share of the clips. A clip's lot depends on its key alone: more shards change nothing."""
    keys = (index.key(row) for row in range(len(index.clips)))
    lots = (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") for key in keys)
    return np.fromiter((lot < fraction * 2.0**64 for lot in lots), dtype=bool)


def _stored(
    name: str, shards: Sequence[Path], *, counts: str, source: SourceSettings, settings: DataSettings, **about: Any
) -> SourceTable | None:
    """Return the stored table of a source; None when there is none for these shards and settings."""
    folder = _table_folder(shards, counts=counts, source=source, settings=settings, **about)
    stored = None if folder is None else open_rows(folder, _DTYPES)
    if stored is None:
        return None
    facts = stored.facts
    return SourceTable(
        name=name,
        settings=source,
        indexes=OpenedLater(shards, facts["digests"], place=settings.index_dir or ""),
        clip_rows=stored.rows["clips"],
        item_rows=stored.rows["items"],
        by_tokens=stored.rows["by_tokens"],
        tasks=tuple(facts["tasks"]),
        quarantined=tuple(Problem(**row) for row in facts["problems"]),
        dropped=facts["dropped"],
        shortened=facts["shortened"],
        passes=source.weight,
        pass_tokens=facts["pass_tokens"],
        maps=stored.maps,
    )


def _made(
    name: str,
    shards: Sequence[Path],
    *,
    counts: str,
    tokenizer: Any,
    counting: Mapping[str, Any],
    workers: int,
    progress: bool,
    settings: DataSettings,
    **about: Any,
) -> SourceTable:
    """Return the table of a source; a large one is written by one of the processes that ask, and mapped by all."""
    place, about = settings.index_dir or "", {"settings": settings, **about}
    with ExitStack() as held:
        # Missing indexes and counts are made by all who ask; where there is nothing left to share, one opens the files.
        seals = (seal_of(index_folder(shard, place=place), counts) for shard in shards)
        alone = len(shards) > STORED_SHARDS and all(seal.exists() for seal in seals)
        if alone:
            held.enter_context(locked(_tables(shards, place=place).with_suffix(".lock")))
            if (stored := _stored(name, shards, counts=counts, **about)) is not None:
                return stored
        indexes = ensure_indexes(shards, workers=workers, progress=progress, place=place)
        lengths = all_lengths(indexes, tokenizer=tokenizer, progress=progress, **counting)
        if sum(index.meta["items"] for index in indexes) <= STORED_ITEMS and len(indexes) <= STORED_SHARDS:
            return source_table(name, indexes, lengths, **about)
        if not alone:
            held.enter_context(locked(_tables(shards, place=place).with_suffix(".lock")))
        stored = _stored(name, shards, counts=counts, **about)
        if stored is None:
            _write(name, indexes, lengths, counts=counts, **about)
            stored = _stored(name, shards, counts=counts, **about)
    if stored is None:
        raise ValueError(f"{_tables(shards, place=place)}: no table right after it was written; look at its disk")
    return stored


def _write(name: str, indexes: Sequence[ShardIndex], lengths: Sequence[Lengths], *, counts: str, **about: Any) -> None:
    """Write the table of a source to where `_stored` looks for it."""
    folder = _table_folder([index.shard for index in indexes], counts=counts, **about)
    assert folder is not None
    with write_rows(folder, _DTYPES) as rows:
        writer = TableWriter(rows)
        table = source_table(name, indexes, lengths, writer=writer, **about)
        rows.append("by_tokens", writer.order.order())
        rows.facts.update(
            digests=[index.digest for index in indexes],
            tasks=list(table.tasks),
            problems=[asdict(problem) for problem in table.quarantined],
            dropped=table.dropped,
            shortened=table.shortened,
            pass_tokens=float(writer.tokens),
        )
    forget(folder.parent, keep=_KEPT_TABLES)


def _tables(shards: Sequence[Path], *, place: str) -> Path:
    """Return the folder of the stored tables of such shards."""
    return Path(index_place(place) or shards[0].parent) / _TABLES


def _table_folder(
    shards: Sequence[Path],
    *,
    counts: str,
    source: SourceSettings,
    settings: DataSettings,
    layout: MediaLayout,
    supervised: bool,
) -> Path | None:
    """Return where the table of these shards and settings lies; None when a shard has no index yet.

    A shard that is written or indexed again changes its times, and so the name; nothing of it is opened.
    """
    digest, place = hashlib.sha256(), settings.index_dir or ""
    decides = {name: value for name, value in asdict(source).items() if name not in ("weight", "repeat", "shards")}
    rules = [settings.token_budget, settings.over_budget, settings.min_frames, supervised, counts]
    digest.update(json.dumps([_FORMAT, decides, rules, asdict(layout)], sort_keys=True).encode())
    try:
        for shard in shards:
            for path in (shard, index_folder(shard, place=place) / "meta.json"):
                facts = path.stat()
                digest.update(f"{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    except FileNotFoundError:
        return None
    return _tables(shards, place=place) / digest.hexdigest()[:32]


def _tasks(indexes: Sequence[ShardIndex], *, source: SourceSettings) -> tuple[str, ...]:
    """Return all tasks of the shards; those that the settings name must be among them."""
    tasks = tuple(sorted({task for index in indexes for task in index.tasks}))
    for task in source.tasks:
        if task not in TASKS:
            raise ValueError(f"tasks.{task}: no such task; choose from {', '.join(TASKS)}")
        if task not in tasks:
            raise ValueError(f"tasks.{task}: the shards have no such item; they have {', '.join(tasks) or 'none'}")
    return tasks
