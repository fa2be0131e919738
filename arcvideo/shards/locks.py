"""Work on many shards that any number of processes share: each takes what nobody else is busy with."""

from __future__ import annotations

import fcntl
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def in_turns(
    shards: Sequence[Path], *, done: Callable[[Path], bool], work: Callable[[Path], None], advance: Callable[[], object]
) -> None:
    """Returns when all shards are done, by this process or by others that were asked for the same at the same time.

    The ranks of a run divide the shards among themselves without talking to each other, and nobody does a shard twice.
    A process that dies leaves its shard to the others.

    Args:
        shards: those that were not done.
        done: whether a shard is finished; asked under its lock.
        work: finishes a shard; called under its lock.
        advance: called once for each finished shard.

    Raises:
        ValueError: a shard's folder cannot be written.
    """
    waiting = deque(shards)
    refused = 0
    while waiting:
        shard = waiting.popleft()
        # After a round in which every shard was somebody else's, it waits for one instead of asking on and on.
        with locked(shard, wait=refused >= len(waiting) + 1) as mine:
            if not mine:
                waiting.append(shard)
                refused += 1
                continue
            refused = 0
            if not done(shard):
                work(shard)
        advance()


@contextmanager
def locked(shard: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a shard's sidecar files; gives False when another process has it and we do not wait.

    Raises:
        ValueError: the lock cannot be written.
    """
    path = shard.with_name(shard.name + ".lock")
    try:
        file = open(path, "w")  # noqa: SIM115 - closed below, and only opening it may be refused
    except OSError as error:
        raise ValueError(f"{path}: cannot be written; copy the shards to a folder that can hold an index") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
