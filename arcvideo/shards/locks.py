"""Work on many shards that any number of processes share: each takes what nobody else is busy with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from arcvideo.processes.locks import hold


def in_turns(
    shards: Sequence[Path],
    *,
    done: Callable[[Path], bool],
    work: Callable[[Path], None],
    advance: Callable[[int], object],
    lock: Callable[[Path], Path],
) -> None:
    """Return when all shards are done, by this process or by others that were asked for the same at the same time.

    The ranks of a run divide the shards among themselves without talking to each other, and nobody does a shard twice.
    A process that dies leaves its shard to the others.

    Args:
        shards: those that were not done.
        done: whether a shard is finished; asked under its lock.
        work: finishes a shard; called under its lock.
        advance: called with 1 for each finished shard.
        lock: a shard's file that is locked meanwhile.

    Raises:
        ValueError: a lock cannot be written.
    """
    waiting = deque(shards)
    refused = 0
    while waiting:
        shard = waiting.popleft()
        # After a round in which every shard was somebody else's, it waits for one instead of asking on and on.
        with locked(lock(shard), wait=refused >= len(waiting) + 1) as mine:
            if not mine:
                waiting.append(shard)
                refused += 1
                continue
            refused = 0
            if not done(shard):
                work(shard)
        advance(1)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a shard's sidecar files; gives False when another process has it and we do not wait.

    Args:
        path: of the file that is locked; its folder is made.
        wait: for the other process.

    Raises:
        ValueError: the lock cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115 - closed below, and only opening it may be refused
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be written ({error.strerror}); give a folder that can hold the indexes, "
            "data.index_dir=DIR, or ARCVIDEO_INDEX_DIR=DIR in the environment of any command"
        ) from error
    with file:
        yield hold(file, path=path, wait=wait)
