"""Which clip a record is about, by what its media are: one clip under two names is on one side of `--held-out`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from arcvideo.data.importers.sources import Cell, Medium, Stills

_EDGE = 1 << 20
"""Bytes at each end of a file that are looked at: other files of the same size and ends only share a side."""


class Clips:
    """Clips by content. Records that share a medium are one clip, whatever else they show."""

    def __init__(self) -> None:
        self._joined: dict[str, str] = {}
        """Medium of a record with several -> another one of the same clip."""

    def join(self, media: Sequence[Medium]) -> None:
        """Note a record's media; all records must be noted before the first is asked for."""
        first, *more = sorted({self._root(content_of(medium)) for medium in media}) or [""]
        self._joined.update(dict.fromkeys(more, first))

    def name(self, media: Sequence[Medium]) -> str:
        """Return what the clip of a record with media is called: equal for equal clips."""
        return self._root(content_of(media[0]))

    def _root(self, content: str) -> str:
        while content in self._joined:
            content = self._joined[content]
        return content


def content_of(medium: Medium) -> str:
    """Return a text that media of equal bytes share; of a file that cannot be read, one of its path."""
    if isinstance(medium, Cell):
        return medium.sha256
    paths = medium.paths if isinstance(medium, Stills) else (medium,)
    return hashlib.sha256("".join(map(_of_file, paths)).encode("utf-8", "surrogateescape")).hexdigest()


def _of_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(b"%d " % size + file.read(_EDGE))
            file.seek(max(_EDGE, size - _EDGE))
            digest.update(file.read(_EDGE))
    except OSError:  # its rows are refused later
        return str(path)
    return digest.hexdigest()
