"""Training must not see what it is measured on: sources against held-out shards, by bytes and by fingerprints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from arcvideo.fingerprints.match import Overlap, overlaps
from arcvideo.fingerprints.sidecar import Printed, read_shard
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ShardIndex, ensure_indexes

MOST_ROWS = 2 * 10**9
"""Pairs of moments that are compared before training, some seconds of work; more is for `shards overlap`."""
REMEDY = "leave them out, measure on other clips, or say data.overlap=allow"


class DataLike(Protocol):
    """What is needed of the settings of data."""

    @property
    def sources(self) -> Mapping[str, SourceLike]: ...
    @property
    def shard_cache(self) -> ShardCacheSettings: ...
    @property
    def workers(self) -> int: ...


class SourceLike(Protocol):
    """What is needed of the settings of a source."""

    @property
    def shards(self) -> str: ...


def refuse_overlap(data: DataLike, *, held_out: str) -> str:
    """Refuse sources that hold a held-out clip; return a line about what was not looked at, or nothing.

    Clips of equal bytes are found in the indexes, copies that were changed where both sides have fingerprints.

    Args:
        data: names the sources.
        held_out: shards that the stage is measured on; shards that are not there are left to the evaluation.

    Raises:
        ValueError: a source holds one of their clips.
    """
    try:
        shards = expand_shards(held_out, cache=data.shard_cache) if held_out else []
    except ValueError:
        shards = []
    if not shards:
        return ""
    wanted = ensure_indexes(shards, workers=data.workers)
    ours = {
        name: ensure_indexes(expand_shards(source.shards, cache=data.shard_cache), workers=data.workers)
        for name, source in data.sources.items()
    }
    digests = {digest: key for key, digest in _digests(wanted)}
    for name, indexes in ours.items():
        same = [(key, digests[digest]) for key, digest in _digests(indexes) if digest in digests]
        if same:
            key, other = same[0]
            raise ValueError(
                f"data.sources.{name}: holds {len(same)} clips of evaluation.shards, the first {key} which is {other} "
                f"there, byte for byte; {REMEDY}"
            )
    return _by_fingerprints(ours, wanted)


def _by_fingerprints(ours: Mapping[str, Sequence[ShardIndex]], wanted: Sequence[ShardIndex]) -> str:
    held = [read_shard(index) for index in wanted]
    if not held or any(one is None for one in held):
        return ""
    looked_for = joined([one for one in held if one is not None])
    unseen = []
    for name, indexes in ours.items():
        printed = [read_shard(index) for index in indexes]
        there = joined([one for one in printed if one is not None])
        if rows_of(looked_for) * rows_of(there) > MOST_ROWS or any(one is None for one in printed):
            unseen.append(name)
            continue
        found = overlaps(looked_for.prints, there.prints)
        if found:
            raise ValueError(
                f"data.sources.{name}: holds {len({one.second for one in found})} clips that are in evaluation.shards "
                f"too, the first {told(found[0], looked_for, there)}; {REMEDY}"
            )
    if not unseen:
        return ""
    return (
        f"overlap: {', '.join(unseen)} compared with evaluation.shards by bytes alone; by picture and sound: "
        "python -m arcvideo.data.shards overlap HELD_OUT SOURCE\n"
    )


def told(one: Overlap, first: Printed, second: Printed) -> str:
    """Return one line about an overlap."""
    stretch = one.picture or one.sound
    assert stretch is not None
    alike = ", ".join(
        f"{name} {part.alike:.2f}"
        for name, part in (("picture", one.picture), ("sound", one.sound))
        if part is not None
    )
    return (
        f"{second.keys[one.second]} = {first.keys[one.first]}: {one.kind}, {stretch.seconds:.1f} s "
        f"at {max(stretch.offset, 0.0):.1f} s of it and {max(-stretch.offset, 0.0):.1f} s of the other ({alike})"
    )


def joined(parts: Sequence[Printed]) -> Printed:
    """Return the clips of several shards as those of one."""
    return Printed(
        name=", ".join(part.name for part in parts),
        keys=tuple(key for part in parts for key in part.keys),
        prints=tuple(one for part in parts for one in part.prints),
        unread=tuple(line for part in parts for line in part.unread),
    )


def rows_of(printed: Printed) -> int:
    """Return how many moments of picture and sound there are."""
    return sum(len(one.picture) + len(one.sound) for one in printed.prints)


def _digests(indexes: Sequence[ShardIndex]) -> Iterator[tuple[str, bytes]]:
    """Yield (key, content) of every medium."""
    for index in indexes:
        clips, parts = index.clips, index.parts
        several = np.zeros(len(clips), dtype=bool)
        several[parts["clip"]] = True
        for row in np.flatnonzero((clips["media_size"] > 0) & ~several):
            yield index.key(int(row)), clips["digest"][row].tobytes()
        for part in parts:
            yield index.key(int(part["clip"])), part["digest"].tobytes()
