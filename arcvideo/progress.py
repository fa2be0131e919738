"""Progress of a long step: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS = 5.0
"""Between two lines of a log."""


def watched(items: Iterable[T], *, what: str, total: int, unit: str, log: TextIO | None = None) -> Iterator[T]:
    """Yield the items and tell how far they are.

    Args:
        items: what is worked through.
        what: name of the step.
        total: how many items there are.
        unit: what an item is called.
        log: where to tell it; None is stderr.
    """
    with counted(what=what, total=total, unit=unit, log=log) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def counted(
    *,
    what: str,
    total: int | None,
    unit: str,
    quiet: bool = False,
    log: TextIO | None = None,
    seconds: float = SECONDS,
) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many items were finished since its last call.

    Args:
        what: name of the step.
        total: how many items there are; None when nobody knows.
        unit: what an item is called; `B` for bytes.
        quiet: tell nothing.
        log: where to tell it; None is stderr.
        seconds: least time between two lines of a log.
    """
    log = log or sys.stderr
    if quiet or not log.isatty():
        yield (lambda count: None) if quiet else lines(what=what, total=total, unit=unit, log=log, seconds=seconds)
        return
    with tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", file=log, leave=False) as bar:
        yield lambda count: bar.update(count) and None


def lines(
    *, what: str, total: int | None, unit: str, log: TextIO | None = None, seconds: float = SECONDS
) -> Callable[[int], None]:
    """Return a function that is told how many items were finished since its last call, and writes a line now and then.

    Args:
        what: name of the step.
        total: how many items there are; None when nobody knows.
        unit: what an item is called; `B` for bytes, which are told in MB.
        log: where to write; None is stderr.
        seconds: least time between two lines.
    """
    began = last_line = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal last_line, done
        done += count
        now = time.monotonic()
        if now - last_line < seconds or done <= 0 or done == total:
            return
        of = "" if total is None else f" of {total}"
        left = "" if total is None else f", {(now - began) / done * (total - done):.0f} s left"
        amount = f"{done / 1e6:.1f} MB" if unit == "B" else f"{done}{of} {unit}s"
        print(f"{what}: {amount}{left}", file=log or sys.stderr, flush=True)
        last_line = now

    return advance
