"""Record keys that occur in several shards of one source: a key names one clip, so only the first is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcvideo.planning.random_words import words
from arcvideo.shards.index import ShardIndex
from arcvideo.shards.members import Problem


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Clips whose key was met before."""

    clips: npt.NDArray[np.int64]
    """Numbers of the clips, counted over all shards in order."""
    problems: tuple[Problem, ...]


def repeated_keys(indexes: Sequence[ShardIndex]) -> Repeated:
    """The clips whose key stands in an earlier shard; inside a shard the index keeps the first of a key.

    Keys are compared by 64-bit numbers first (8 bytes a clip), and as text where those agree.
    """
    numbers = np.concatenate([_numbers(index) for index in indexes])
    first_clip = np.cumsum([0] + [len(index.clips) for index in indexes])
    order = np.argsort(numbers, kind="stable")
    same = np.flatnonzero(numbers[order][1:] == numbers[order][:-1])
    found: dict[int, Problem] = {}
    first: dict[str, tuple[int, str]] = {}
    for place in same.tolist():
        for clip in order[[place, place + 1]].tolist():
            shard = int(np.searchsorted(first_clip, clip, side="right")) - 1
            name, key = indexes[shard].shard.name, indexes[shard].key(clip - int(first_clip[shard]))
            met, where = first.setdefault(key, (clip, name))
            if met != clip:
                detail = f"its key stands in {where} too; keys must be unique in a source"
                found[clip] = Problem(key=key, stage="record", reason="duplicate_key", detail=detail, shard=name)
    clips = sorted(found)
    return Repeated(clips=np.array(clips, dtype=np.int64), problems=tuple(found[clip] for clip in clips))


def _numbers(index: ShardIndex) -> npt.NDArray[np.uint64]:
    """(C,) a number of each key: its bytes times random words that depend on their place, summed modulo 2**64."""
    size, start = index.clips["key_size"].astype(np.int64), index.clips["key_start"]
    if not len(size):
        return np.empty(0, dtype=np.uint64)
    place = np.arange(int(size.sum())) - np.repeat(start, size)
    factors = words(int(size.max()), "keys") | np.uint64(1)
    return np.add.reduceat(np.asarray(index.keys).astype(np.uint64) * factors[place], start)
