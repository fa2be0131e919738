"""How long something that fails is asked for again: a bounded number of tries, further and further apart, each told."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from arcvideo.remote.settings import ShardCacheSettings

SLOWEST = 1 << 10
"""Bytes a second below which an answer counts as stalled."""
_LONGEST = 30.0
"""Seconds between two tries."""
_PROGRESS = 1 << 20
"""Bytes after which tries and deadline count anew. A drip is no progress."""

T = TypeVar("T")


class Broken(Exception):
    """An answer that did not arrive; another try may end better."""


class Refused(ValueError):
    """Something that no further try changes."""


class Ended(Exception):
    """Nobody waits for the answer any more."""


class Patience:
    """What is left of the tries of one file, or of one range of it."""

    def __init__(self, url: str, *, settings: ShardCacheSettings, ended: threading.Event | None = None) -> None:
        """Begin with all tries.

        Args:
            url: for messages.
            settings: how often and how long.
            ended: set when nobody waits any more; it ends a pause at once. None for never.
        """
        self._url, self._settings = url, settings
        self._ended = ended or threading.Event()
        self._tries, self._since, self._came = 0, time.monotonic(), 0

    def progress(self, size: int) -> None:
        """Note bytes that arrived."""
        self._came += size
        if self._came >= _PROGRESS:
            self._tries, self._since, self._came = 0, time.monotonic(), 0

    def answer(self, ask: Callable[[], T]) -> T:
        """Return what is asked for, as soon as a try brings it.

        Raises:
            Refused: none does; and whatever else `ask` raises besides Broken.
        """
        while True:
            try:
                return ask()
            except Broken as error:
                self.broken(error)

    def named(self, error: Refused) -> Refused:
        """Return the error with the URL in front, which what asks a server does not say."""
        return error if str(error).startswith(self._url) else Refused(f"{self._url}: cannot be read: {error}")

    def broken(self, error: Broken) -> None:
        """Return when it is time for the next try.

        Raises:
            Refused: there is none.
            Ended: nobody waits for it.
        """
        self._tries += 1
        waited = time.monotonic() - self._since
        pause = min(2.0 ** (self._tries - 1), _LONGEST)
        if self._tries > self._settings.retries or waited + pause > self._settings.deadline_seconds:
            often = f" ({self._tries} tries in {waited:.0f} s)" if self._tries > 1 else ""
            raise Refused(f"{self._url}: cannot be read: {error}{often}") from error
        print(f"{self._url}: {error}; again in {pause:g} s", file=sys.stderr)
        if self._ended.wait(pause):
            raise Ended
