"""Progress of a long step: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
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
    log = log or sys.stderr
    if log.isatty():
        yield from tqdm(items, total=total, desc=what, unit=unit, file=log, leave=False)
        return
    advance = lines(what=what, total=total, unit=unit, log=log)
    for item in items:
        yield item
        advance(1)


def lines(
    *, what: str, total: int, unit: str, log: TextIO | None = None, seconds: float = SECONDS
) -> Callable[[int], None]:
    """Return a function that is told how many items were finished since its last call, and writes a line now and then.

    Args:
        what: name of the step.
        total: how many items there are.
        unit: what an item is called.
        log: where to write; None is stderr.
        seconds: least time between two lines.
    """
    began = told = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal told, done
        done += count
        now = time.monotonic()
        if now - told >= seconds and 0 < done < total:
            left = (now - began) / done * (total - done)
            print(f"{what}: {done} of {total} {unit}s, {left:.0f} s left", file=log or sys.stderr, flush=True)
            told = now

    return advance
