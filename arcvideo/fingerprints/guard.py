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
    @property
    def index_dir(self) -> str | None: ...


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
    place = data.index_dir or ""
    wanted = ensure_indexes(shards, workers=data.workers, place=place)
    ours = {
        name: ensure_indexes(expand_shards(source.shards, cache=data.shard_cache), workers=data.workers, place=place)
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
    if not held or any(part is None for part in held):
        return ""
    looked_for = joined([part for part in held if part is not None])
    unseen = []
    for name, indexes in ours.items():
        printed = [read_shard(index) for index in indexes]
        there = joined([part for part in printed if part is not None])
        if rows_of(looked_for) * rows_of(there) > MOST_ROWS or any(part is None for part in printed):
            unseen.append(name)
            continue
        pairs = overlaps(looked_for.prints, there.prints)
        if pairs:
            raise ValueError(
                f"data.sources.{name}: holds {len({pair.second for pair in pairs})} clips that are in "
                f"evaluation.shards too, the first {overlap_line(pairs[0], looked_for, there)}; {REMEDY}"
            )
    if not unseen:
        return ""
    return (
        f"overlap: {', '.join(unseen)} compared with evaluation.shards by bytes alone; by picture and sound: "
        "python -m arcvideo.data.shards overlap HELD_OUT SOURCE\n"
    )


def overlap_line(pair: Overlap, first: Printed, second: Printed) -> str:
    """Return one line about an overlap."""
    stretch = pair.picture or pair.sound
    assert stretch is not None
    alike = ", ".join(
        f"{name} {part.alike:.2f}"
        for name, part in (("picture", pair.picture), ("sound", pair.sound))
        if part is not None
    )
    return (
        f"{second.keys[pair.second]} = {first.keys[pair.first]}: {pair.kind}, {stretch.seconds:.1f} s "
        f"at {max(stretch.offset, 0.0):.1f} s of it and {max(-stretch.offset, 0.0):.1f} s of the other ({alike})"
    )


def joined(parts: Sequence[Printed]) -> Printed:
    """Return the clips of several shards as those of one."""
    return Printed(
        name=", ".join(part.name for part in parts),
        keys=tuple(key for part in parts for key in part.keys),
        prints=tuple(fingerprint for part in parts for fingerprint in part.prints),
        unread=tuple(line for part in parts for line in part.unread),
    )


def rows_of(printed: Printed) -> int:
    """Return how many moments of picture and sound there are."""
    return sum(len(fingerprint.picture) + len(fingerprint.sound) for fingerprint in printed.prints)


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
