"""Locks on files, which the kernel frees when their holder dies; also where a disk has none. Imports no torch."""

from __future__ import annotations

import errno
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

_NONE = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What disks without locks answer: Lustre mounted without `flock`, NFS without its lock service, some of FUSE."""
_told: set[int] = set()


class NoLocks(OSError):
    """The disk has no locks."""


def hold(file: IO[Any] | int, *, path: Path, wait: bool = True) -> bool:
    """Lock an open file or folder until it is closed; return False when another has it and we do not wait.

    On a disk without locks it counts as held, and a person is told so once.

    Args:
        path: its name, for people.
    """
    try:
        return held(file, wait=wait)
    except NoLocks as error:
        place = path.parent.stat().st_dev
        if place not in _told:
            _told.add(place)
            why = f"{path.parent}: its disk has no locks ({error.strerror}), so start only one job that writes there"
            print(why, file=sys.stderr, flush=True)
        return True


def held(file: IO[Any] | int, *, wait: bool = True, shared: bool = False) -> bool:
    """As `hold`, with `shared` beside others that share it.

    Raises:
        NoLocks: nobody can tell.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NONE:
            raise NoLocks(error.errno, error.strerror) from None
        raise
    return True


def hold_in_turn(file: IO[Any] | int, *, path: Path, busy: str, log: TextIO | None = None) -> None:
    """As `hold`; where another has it, say once who that is, and wait.

    Args:
        path: its name, for people.
        busy: what the other does.
        log: where to say it; None is stdout.
    """
    if not hold(file, path=path, wait=False):
        print(f"waiting for {path}: {busy}", file=log, flush=True)
        hold(file, path=path)


@contextmanager
def appending(path: Path) -> Iterator[IO[str]]:
    """Open a file of JSON lines to append to, alone: wait for another process that has it so, and say that once.

    What others wrote has to be read inside the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="ascii") as file:
        hold_in_turn(file, path=path, busy="another job writes it", log=sys.stderr)
        yield file
