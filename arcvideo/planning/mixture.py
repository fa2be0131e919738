"""From settings to tables: which clips and items of each source may be drawn, and how long they are in tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from arcvideo.layout import MediaLayout
from arcvideo.planning.repeated import repeated_keys
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.planning.sizes import prefix_tokens
from arcvideo.render import media_length
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ShardIndex, ensure_indexes
from arcvideo.shards.lengths import Lengths, all_lengths
from arcvideo.shards.members import Problem
from arcvideo.tasks import TASKS

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """What may be drawn from one source. C clips, I items; items of a clip stand together, in record order."""

    name: str
    settings: SourceSettings
    indexes: tuple[ShardIndex, ...]
    clip_shard: Ints
    """(C,) which of `indexes`."""
    clip_row: Ints
    """(C,) row in that index."""
    frames: Ints
    """(C,) frames shown; 0 for text only."""
    frame_limit: Ints
    """(C,) frames a clip may have: the layout's max_frames, or fewer by the policy fewer_frames."""
    media_tokens: Ints
    """(C,) tokens from `<vid>` to `</vid>`; 0 for text only."""
    both: npt.NDArray[np.bool_]
    """(C,) has picture and sound."""
    item_start: Ints
    """(C + 1,) cumulative item counts."""
    item_row: Ints
    """(I,) row in the shard's item table."""
    item_task: Ints
    """(I,) position in `tasks`."""
    item_weight: npt.NDArray[np.float64]
    """(I,) task weight over the number of items of that task in the clip."""
    item_before: Ints
    """(I,) tokens of the text before the media."""
    item_branch: Ints
    """(I,) tokens behind the media."""
    item_group: Ints
    """(I,) items of a clip in the same group share a prefix."""
    tasks: tuple[str, ...]
    quarantined: tuple[Problem, ...]
    dropped: int
    """Items that exceed the token budget and are left out."""
    shortened: int
    """Clips shown with fewer frames than the layout has for them, so that they fit the token budget."""
    passes: float
    """How often an epoch passes over the source."""

    @property
    def clips(self) -> int:
        return len(self.clip_row)

    @property
    def items(self) -> int:
        return len(self.item_row)

    @property
    def item_clip(self) -> Ints:
        """(I,) clip of each item."""
        return np.repeat(np.arange(self.clips), np.diff(self.item_start))

    def place(self, clip: int) -> tuple[ShardIndex, int]:
        """Return the index of a clip's shard, and the clip's row in it."""
        return self.indexes[self.clip_shard[clip]], int(self.clip_row[clip])

    def key(self, clip: int) -> str:
        index, row = self.place(clip)
        return index.key(row)

    def prefix(self, item: Ints, clip: Ints) -> Ints:
        """Return the tokens before the branch of each item, 0 for text only; `clip` holds the clips of the items."""
        return prefix_tokens(self.item_before[item], self.media_tokens[clip])

    @property
    def tokens(self) -> Ints:
        """(I,) tokens of each item alone with its prefix."""
        return self.prefix(np.arange(self.items), self.item_clip) + self.item_branch


@dataclass(kw_only=True)
class _Columns:
    """Items of all shards before filtering; I rows."""

    shard: Ints
    row: Ints
    clip: Ints
    task: Ints
    before: Ints
    branch: Ints
    group: Ints
    media_tokens: Ints
    keep: npt.NDArray[np.bool_]


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
    """The table of every source, in the order of the settings; missing indexes are built.

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
        try:
            shards = expand_shards(source.shards, cache=settings.shard_cache)
            indexes = ensure_indexes(shards, workers=index_workers, progress=progress)
            lengths = all_lengths(
                indexes,
                tokenizer=tokenizer,
                style=source.style,
                wording=settings.wording,
                pairs=pairs,
                progress=progress,
            )
            table = source_table(
                name, indexes, lengths, source=source, settings=settings, layout=layout, supervised=supervised
            )
        except ValueError as error:
            raise ValueError(f"data.sources.{name}: {error}") from error
        tables.append(table)
    return tables


def index_digest(tables: Sequence[SourceTable]) -> str:
    """Hex digest of the content of all shards of all sources: what a stage's identity calls its data."""
    return content_digest((table.name, table.indexes) for table in tables)


def content_digest(sources: Iterable[tuple[str, Sequence[ShardIndex]]]) -> str:
    """The same from (name, indexes) of each source, for those who need no lengths."""
    digest = hashlib.sha256()
    for name, indexes in sources:
        digest.update(name.encode())
        for index in indexes:
            digest.update(bytes.fromhex(index.digest))
    return digest.hexdigest()


def frame_counts(duration: np.ndarray, *, max_frames: int | Ints) -> Ints:
    """Frames of clips of these lengths in seconds: one a second, at least 1, at most max_frames."""
    return np.clip(np.ceil(duration), 1, max_frames).astype(np.int64)


def frame_limits(duration: np.ndarray, *, clip: Ints, text: Ints, settings: DataSettings, layout: MediaLayout) -> Ints:
    """(C,) most frames each clip may have: the layout's limit, or by the policy fewer_frames as many as fit beside the
    longest of its items; items that would leave fewer than `data.min_frames` do not count, they are dropped.

    Args:
        duration: (C,) seconds.
        clip: (I,) clip of each item.
        text: (I,) tokens of each item that are not media: the start token, the text before the media, the branch.
    """
    limit = np.full(len(duration), layout.max_frames, dtype=np.int64)
    if settings.over_budget == "fewer_frames":
        ends = media_length(0, layout=layout)
        room = (
            (settings.token_budget - text - ends) // (media_length(1, layout=layout) - ends) * layout.frames_per_group
        )
        tight = room < frame_counts(duration, max_frames=layout.max_frames)[clip]
        tight &= room >= settings.min_frames
        np.minimum.at(limit, clip[tight], room[tight])
    return limit


def source_table(
    name: str,
    indexes: list[ShardIndex],
    lengths: list[Lengths],
    *,
    source: SourceSettings,
    settings: DataSettings,
    layout: MediaLayout,
    supervised: bool,
) -> SourceTable:
    """The table of one source, from its indexes and the token counts beside them.

    Raises:
        ValueError: no usable item, a wrong task name, a sample over the budget.
    """
    tasks = _tasks(indexes, source=source)
    clip_shard = np.repeat(np.arange(len(indexes)), [len(index.clips) for index in indexes])
    clip_row = np.concatenate([np.arange(len(index.clips)) for index in indexes])
    facts = np.concatenate([index.clips[["media_size", "duration", "has_video", "sound_samples"]] for index in indexes])
    has_media, has_sound = facts["media_size"] > 0, facts["sound_samples"] > 0
    usable = {"both": np.ones(len(facts), bool), "video": facts["has_video"], "audio": has_sound}[source.modality]
    usable = usable & (np.arange(len(facts)) < (source.max_clips or len(facts)))
    repeated = repeated_keys(indexes)
    usable[repeated.clips] = False
    if source.fraction < 1:
        usable = usable & _sampled(indexes, fraction=source.fraction)
    columns = _columns(indexes, lengths, tasks=tasks, source=source, think_only=supervised and source.style != "plain")
    columns.keep &= usable[columns.clip]
    text = (1 + columns.before + columns.branch)[columns.keep]
    limit = frame_limits(
        facts["duration"], clip=columns.clip[columns.keep], text=text, settings=settings, layout=layout
    )
    frames = np.where(has_media, frame_counts(facts["duration"], max_frames=limit), 0)
    media_tokens = np.where(has_media, media_length(frames, layout=layout), 0)
    columns.media_tokens = media_tokens[columns.clip]
    dropped = _apply_budget(columns, indexes, settings=settings)
    kept = np.flatnonzero(columns.keep)
    if not len(kept):
        raise ValueError(
            f"no usable item: {len(columns.keep)} items, none passes tasks={list(source.tasks)}, tags={source.tags}, "
            f"style={source.style}, modality={source.modality} and the budget of {settings.token_budget} tokens"
        )
    clips, item_clip = np.unique(columns.clip[kept], return_inverse=True)
    task = columns.task[kept]
    same = np.unique(item_clip * len(tasks) + task, return_inverse=True, return_counts=True)
    weights = np.array([source.tasks.get(task_name, 1.0) for task_name in tasks])
    problems = [*(problem for index in indexes for problem in index.problems()), *repeated.problems]
    for index, part in zip(indexes, lengths, strict=True):
        problems += [replace(problem, shard=index.shard.name) for problem in part.problems]
    return SourceTable(
        name=name,
        settings=source,
        indexes=tuple(indexes),
        clip_shard=clip_shard[clips],
        clip_row=clip_row[clips],
        frames=frames[clips],
        frame_limit=limit[clips],
        media_tokens=media_tokens[clips],
        both=(facts["has_video"] & has_sound)[clips],
        item_start=np.concatenate([[0], np.cumsum(np.bincount(item_clip, minlength=len(clips)))]),
        item_row=columns.row[kept],
        item_task=task,
        item_weight=weights[task] / same[2][same[1]],
        item_before=columns.before[kept],
        item_branch=columns.branch[kept],
        item_group=columns.group[kept],
        tasks=tasks,
        quarantined=tuple(problems),
        dropped=dropped,
        shortened=int((has_media & (limit < layout.max_frames))[clips].sum()),
        passes=source.weight,
    )


def _sampled(indexes: list[ShardIndex], *, fraction: float) -> npt.NDArray[np.bool_]:
    """(C,) about this share of the clips. A clip's lot depends on its key alone, so more shards change nothing."""
    keys = (index.key(row) for index in indexes for row in range(len(index.clips)))
    lots = (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") for key in keys)
    return np.fromiter((lot < fraction * 2.0**64 for lot in lots), dtype=bool)


def _tasks(indexes: list[ShardIndex], *, source: SourceSettings) -> tuple[str, ...]:
    """All tasks of the shards; those that the settings name must be among them."""
    found = tuple(sorted({task for index in indexes for task in index.tasks}))
    for task in source.tasks:
        if task not in TASKS:
            raise ValueError(f"tasks.{task}: no such task; choose from {', '.join(TASKS)}")
        if task not in found:
            raise ValueError(f"tasks.{task}: the shards have no such item; they have {', '.join(found) or 'none'}")
    return found


def _columns(
    indexes: list[ShardIndex],
    lengths: list[Lengths],
    *,
    tasks: tuple[str, ...],
    source: SourceSettings,
    think_only: bool,
) -> _Columns:
    """All items of all shards, with `keep` set by task, tags, reasoning and renderability."""
    parts, first_clip = [], 0
    wanted = np.array([source.tasks.get(task, 0.0 if source.tasks else 1.0) > 0 for task in tasks], dtype=bool)
    for number, (index, length) in enumerate(zip(indexes, lengths, strict=True)):
        items, counted = np.asarray(index.items), length.rows
        task = np.array([tasks.index(name) for name in index.tasks], dtype=np.int64)[items["task"]]
        tagged = np.array([set(source.tags) <= set(tags) for tags in index.tagsets], dtype=bool)[items["tagset"]]
        keep = wanted[task] & tagged & (counted["branch"] > 0)
        keep &= items["think"] | (not think_only)
        parts.append(
            _Columns(
                shard=np.full(len(items), number),
                row=np.arange(len(items)),
                clip=items["clip"] + first_clip,
                task=task,
                before=counted["before"].astype(np.int64),
                branch=counted["branch"].astype(np.int64),
                group=counted["group"].astype(np.int64),
                media_tokens=np.zeros(len(items), dtype=np.int64),
                keep=keep,
            )
        )
        first_clip += len(index.clips)
    return _Columns(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _apply_budget(columns: _Columns, indexes: list[ShardIndex], *, settings: DataSettings) -> int:
    """Clears `keep` of items that do not fit a pack even alone. Returns how many."""
    prefix = prefix_tokens(columns.before, columns.media_tokens)
    over = np.flatnonzero(columns.keep & (prefix + columns.branch > settings.token_budget))
    if not len(over):
        return 0
    if settings.over_budget == "error":
        worst = over[np.argmax((prefix + columns.branch)[over])]
        index = indexes[columns.shard[worst]]
        item = index.items[columns.row[worst]]
        key = f"{index.key(int(item['clip']))}/{item['number']}"
        raise ValueError(
            f"{len(over)} items exceed data.token_budget={settings.token_budget}; the longest, {key}, needs "
            f"{prefix[worst] + columns.branch[worst]} tokens. Raise the budget, or set data.over_budget to "
            "fewer_frames or drop"
        )
    columns.keep[over] = False
    return len(over)
