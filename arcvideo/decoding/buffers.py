"""Memory that is used again: fresh pages for a clip cost threads of one process as much as reading its JPEGs."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from math import prod

import numpy as np

_WASTE = 1.25
"""A piece may be so many times larger than what it is lent for."""


class Buffers:
    """Lends uint8 arrays and takes them back once nothing refers to them any more; any thread may ask."""

    def __init__(self, *, keep: int = 512 << 20) -> None:
        """Start empty.

        Args:
            keep: bytes that may lie idle; what comes back beyond them is freed.
        """
        self._keep = keep
        self._lock = threading.Lock()
        # Filled by whichever thread drops an array, maybe in the middle of `lend`: so without a lock.
        self._returned: deque[np.ndarray] = deque()
        self._idle: list[np.ndarray] = []

    def lend(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a contiguous uint8 array with anything in it.

        It counts as used while it, a view of it, or a tensor over it lives: all of them hold the array.
        """
        size = prod(shape)
        piece = self._piece(size)
        # Over a memoryview, so that the base of each view is `array` and not what lies below.
        array = np.frombuffer(piece.data, dtype=np.uint8)
        weakref.finalize(array, self._returned.append, piece).atexit = False
        return array[:size].reshape(shape)

    def _piece(self, size: int) -> np.ndarray:
        with self._lock:
            while self._returned:
                self._idle.append(self._returned.popleft())
            fitting = [piece for piece in self._idle if size <= piece.nbytes <= size * _WASTE]
            chosen = min(fitting, key=lambda piece: piece.nbytes, default=None)
            self._idle = [piece for piece in self._idle if piece is not chosen]
            while sum(piece.nbytes for piece in self._idle) > self._keep:
                self._idle.pop(0)  # the one that lay idle for longest
        return np.empty(size, dtype=np.uint8) if chosen is None else chosen
