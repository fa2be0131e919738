"""A line now and then while nothing else is printed: that a run lives, and what it does. Imports no torch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from arcvideo.processes.activity import doing
from arcvideo.processes.terminal import last_spoken

SILENCE_SECONDS = 10.0
"""Without a line, before the first sign of life."""
_SLOWER = 4
"""A silence lasts so many times longer before its next sign: a run whose steps take minutes is not drowned in them."""


@contextmanager
def signs_of_life() -> Iterator[None]:
    """Print what goes on, as `activity.note` has it, on stderr when the terminal is silent while the block runs."""
    end = threading.Event()
    threading.Thread(target=_watch, args=(end,), name="signs of life", daemon=True).start()
    try:
        yield
    finally:
        end.set()


def _watch(end: threading.Event) -> None:
    spoke, own, patience = time.monotonic(), last_spoken(), SILENCE_SECONDS
    while not end.wait(min(SILENCE_SECONDS / 4, 1.0)):
        if last_spoken() > own:
            spoke = own = last_spoken()
            patience = SILENCE_SECONDS
        elif time.monotonic() - spoke >= patience:
            what, since = doing()
            print(f"working: {what}, for {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
            # The silence of others goes on.
            own, patience = last_spoken(), patience * _SLOWER
