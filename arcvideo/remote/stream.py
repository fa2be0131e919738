"""A remote file read from front to back, as if it lay here: what was passed is forgotten, a break is taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO

from arcvideo.remote.origin import Identity, Origin
from arcvideo.remote.patience import Broken, Patience, Refused

_KEPT = 4 << 20
"""Bytes behind the place last read that are kept: a reader of tars looks back so far."""
_JUMP = 1 << 20
"""Bytes that are read over sooner than a new request is made behind them."""
_PIECE = 1 << 20


class Stream:
    """Bytes of a remote file by place, in little memory and one request as long as the places ascend."""

    def __init__(
        self, origin: Origin, *, identity: Identity, patience: Patience, advance: Callable[[int], object] | None = None
    ) -> None:
        """Ask for nothing yet.

        Args:
            advance: called with the bytes that came.
        """
        self._advance = advance
        self.size = identity.size
        self._origin, self._identity, self._patience = origin, identity, patience
        self._window, self._start = bytearray(), 0
        self._pieces: Iterator[bytes] | None = None

    def pread(self, count: int, at: int) -> bytes:
        """Return up to `count` bytes at a place, fewer at the end of the file.

        Raises:
            Refused, Changed.
        """
        end = min(at + count, self.size)
        if at >= end:
            return b""
        if not self._start <= at <= self._end + _JUMP:
            self._window, self._start, self._pieces = bytearray(), at, None
        while self._end < end:
            self._window += self._next()
            surplus = min(self._end - _KEPT, at) - self._start
            if surplus > _KEPT:
                del self._window[:surplus]
                self._start += surplus
        return bytes(memoryview(self._window)[at - self._start : end - self._start])

    def copy(self, offset: int, size: int, *, into: IO[bytes]) -> None:
        """Write the bytes of a member to a file of ours, as many as there are."""
        for at in range(offset, offset + size, _PIECE):
            into.write(self.pread(min(_PIECE, offset + size - at), at))

    @property
    def _end(self) -> int:
        return self._start + len(self._window)

    def _next(self) -> bytes:
        while True:
            try:
                if self._pieces is None:
                    self._pieces = self._origin.stream(self._end, self.size, of=self._identity)
                piece = next(self._pieces)
            except Broken as error:
                self._pieces = None
                self._patience.broken(error)
                continue
            except Refused as error:
                raise self._patience.named(error) from error
            self._patience.progress(len(piece))
            if self._advance is not None:
                self._advance(len(piece))
            return piece
