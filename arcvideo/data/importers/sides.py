"""Which clip a record is about, by what its media are: one clip under two names is on one side of `--held-out`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from arcvideo.data.importers.sources import Cell, Medium, Stills, ends_of


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
    """Return a text that media of equal bytes share, be they files or cells of a table; of a file that cannot be read,
    one of its path.
    """
    if isinstance(medium, Cell):
        return _content([medium.ends])
    return _content(map(_ends_or_path, medium.paths if isinstance(medium, Stills) else (medium,)))


def content_of_file(path: Path) -> str:
    """Return the text of a file, so that whoever else chooses sides by content chooses as an import does.

    Raises:
        OSError: it cannot be read.
    """
    return _content([_ends(path)])


def _content(ends: Iterable[str]) -> str:
    return hashlib.sha256("".join(ends).encode("utf-8", "surrogateescape")).hexdigest()


def _ends_or_path(path: Path) -> str:
    try:
        return _ends(path)
    except OSError:  # its rows are refused later
        return str(path)


def _ends(path: Path) -> str:
    with open(path, "rb") as file:
        return ends_of(file, size=os.fstat(file.fileno()).st_size)
