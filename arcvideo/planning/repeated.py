"""Record keys that occur in several shards of one source: a key names one clip, so only the first is used."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcvideo.planning.random_words import words
from arcvideo.shards.index import ShardIndex
from arcvideo.shards.members import Problem

Words = npt.NDArray[np.uint64]

_HELD = 1 << 22
"""Numbers sorted at once; more lie in files without a name."""


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Clips whose key was met before."""

    clips: npt.NDArray[np.int64]
    """Numbers of the clips, counted over all shards in order."""
    problems: tuple[Problem, ...]


def repeated_keys(indexes: Sequence[ShardIndex]) -> Repeated:
    """Return the clips whose key stands in an earlier shard; inside a shard the index keeps the first of a key.

    Keys are compared by 64-bit numbers first, and as text where those agree.
    """
    twice = met_twice(map(key_numbers, indexes), count=sum(index.meta["clips"] for index in indexes))
    problems: dict[int, Problem] = {}
    first: dict[str, str] = {}
    met = 0
    for index in indexes if len(twice) else ():
        for row in np.flatnonzero(np.isin(key_numbers(index), twice)).tolist():
            key, name = index.key(row), index.shard.name
            if key in first:
                detail = f"its key stands in {first[key]} too; keys must be unique in a source"
                problem = Problem(key=key, stage="record", reason="duplicate_key", detail=detail, shard=name)
                problems[met + row] = problem
            first.setdefault(key, name)
        met += len(index.clips)
    return Repeated(clips=np.array(list(problems), dtype=np.int64), problems=tuple(problems.values()))


def key_numbers(index: ShardIndex) -> Words:
    """Return (C,) a number of each key: its bytes times random words that depend on their place, summed modulo
    2**64.
    """
    size, start = index.clips["key_size"].astype(np.int64), index.clips["key_start"]
    if not len(size):
        return np.empty(0, dtype=np.uint64)
    factors, keys = words(int(size.max()), "keys") | np.uint64(1), np.asarray(index.keys).astype(np.uint64)
    if size.min() == size.max():
        return np.asarray((keys.reshape(len(size), -1) * factors).sum(axis=1, dtype=np.uint64))
    place = np.arange(int(size.sum())) - np.repeat(start, size)
    return np.add.reduceat(keys * factors[place], start)


def met_twice(parts: Iterable[Words], *, count: int, held: int = _HELD) -> Words:
    """Return the numbers that come more than once, ascending.

    Args:
        parts: the numbers, spread evenly over all that 64 bits hold.
        count: of them all, about.
        held: most of them in memory, about.
    """
    files = -(-count // held)
    if files <= 1:
        return _twice(np.concatenate([np.empty(0, dtype=np.uint64), *parts]))
    edges = np.arange(1, files, dtype=np.uint64) * np.uint64(2**64 // files)
    with ExitStack() as opened:
        spills = [opened.enter_context(tempfile.TemporaryFile()) for _ in range(files)]
        for batch in _batches(parts, size=held):
            batch.sort()
            for spill, piece in zip(spills, np.split(batch, np.searchsorted(batch, edges)), strict=True):
                piece.tofile(spill)
        repeated = []
        for spill in spills:
            spill.seek(0)
            repeated.append(_twice(np.fromfile(spill, dtype=np.uint64)))
    return np.concatenate(repeated)


def _batches(parts: Iterable[Words], *, size: int) -> Iterator[Words]:
    waiting: list[Words] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= size:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _twice(numbers: Words) -> Words:
    numbers.sort()
    return np.unique(numbers[1:][numbers[1:] == numbers[:-1]])
