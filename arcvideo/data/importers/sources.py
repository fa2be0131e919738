"""Where the bytes of a clip come from: a file, a cell of a table, or pictures that become a video.

Files are read where they are and never held whole. The other two exist nowhere as files: each is made in memory when
its turn comes, and forgotten when its record is written.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from arcvideo.data.importers.columnar import cell_bytes, columnar_rows, file_of
from arcvideo.media.errors import MediaError
from arcvideo.media.still import video_of_stills

_PIECE = 1 << 20
_EDGE = 1 << 20
"""Bytes at each end of a file that tell its clip: other files of the same size and ends only share a side."""
_FRAME_BYTES = 1 << 10
"""What the container adds to a picture, at most."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A file that a table holds."""

    table: Path
    row: int
    """From 0."""
    column: str
    name: str
    """What the file is called, as far as the table says; the type counts."""
    size: int
    sha256: str
    ends: str
    """As `ends_of` gives it."""
    part: int | None = None
    """Which of the list in the cell; None for a cell that holds one file."""

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower() or ".media"


@dataclass(frozen=True, kw_only=True)
class Stills:
    """Pictures that were extracted from a video."""

    paths: tuple[Path, ...]
    times: tuple[float, ...]
    """Second of each."""

    suffix = ".mov"


Medium = Path | Cell | Stills


def rows_with_cells(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 0, row) of a Parquet or Arrow file; in place of a file in it, or in a list in it, its Cell.

    Raises:
        ValueError: pyarrow is missing, or the file cannot be read.
    """
    for number, row in columnar_rows(path):
        yield number, {name: _with_cells(value, path, number, name) for name, value in row.items()}


def _with_cells(value: Any, table: Path, row: int, column: str) -> Any:
    if isinstance(value, list) and len(value) > 1:
        return [_cell(one, table, row, column, part) for part, one in enumerate(value)]
    return _cell(value, table, row, column, None)


def _cell(value: Any, table: Path, row: int, column: str, part: int | None) -> Any:
    """Return a value; of one that holds a file, where it is."""
    found = file_of(value)
    if found is None:
        return value
    data, name = found
    sha256, ends = hashlib.sha256(data).hexdigest(), ends_of(io.BytesIO(data), size=len(data))
    return Cell(table=table, row=row, column=column, name=name, size=len(data), sha256=sha256, ends=ends, part=part)


def ends_of(file: IO[bytes], *, size: int) -> str:
    """Return a text that files of equal bytes share: a digest of their size and of both ends.

    Args:
        file: at its beginning.
        size: of it.
    """
    digest = hashlib.sha256(b"%d " % size + file.read(_EDGE))
    file.seek(max(_EDGE, size - _EDGE))
    digest.update(file.read(_EDGE))
    return digest.hexdigest()


def place_of(medium: Medium) -> list[Any]:
    """Return what tells a medium from others, as JSON has it: rows with an equal one are about the same clip."""
    if isinstance(medium, Cell):
        return ["cell", Path(medium.name).stem, medium.suffix, medium.sha256]
    if isinstance(medium, Stills):
        return ["stills", [str(path) for path in medium.paths], list(medium.times)]
    return [str(medium)]


def as_json(medium: Medium | None) -> Any:
    """Return a medium as JSON has it; `of_json` makes it again."""
    if medium is None:
        return None
    if isinstance(medium, Cell):
        return {**vars(medium), "table": str(medium.table)}
    if isinstance(medium, Stills):
        return {"paths": [str(path) for path in medium.paths], "times": medium.times}
    return str(medium)


def of_json(value: Any) -> Medium | None:
    """Return the medium of `as_json`."""
    if not isinstance(value, dict):
        return None if value is None else Path(value)
    if "table" in value:
        return Cell(**{**value, "table": Path(value["table"])})
    return Stills(paths=tuple(map(Path, value["paths"])), times=tuple(value["times"]))


def is_there(medium: Medium) -> bool:
    """Return whether the files of a medium exist."""
    paths = medium.paths if isinstance(medium, Stills) else (medium.table if isinstance(medium, Cell) else medium,)
    return all(map(os.path.isfile, paths))


def size_of(medium: Medium) -> int:
    """Return the bytes of a medium, an upper bound for pictures that become a video; 0 for a file that is missing."""
    if isinstance(medium, Cell):
        return medium.size
    if isinstance(medium, Stills):
        return sum(size_of(path) + _FRAME_BYTES for path in medium.paths)
    try:
        return medium.stat().st_size
    except OSError:
        return 0


def state_of(medium: Medium | None) -> Any:
    """Return what changes when somebody changes a medium: size and time of its file, or the digest of its content."""
    if medium is None:
        return None
    if isinstance(medium, Cell):
        return medium.sha256
    if isinstance(medium, Stills):
        return [*map(state_of, medium.paths), list(medium.times)]
    try:
        facts = medium.stat()
    except OSError:
        return [medium.name, None]
    return [medium.name, facts.st_size, facts.st_mtime_ns]


def label_of(medium: Medium) -> str:
    """Return what a medium is called in messages."""
    if isinstance(medium, Cell):
        return f"{medium.table}, row {medium.row + 1}"
    return f"frames {medium.paths[0]}, ..." if isinstance(medium, Stills) else str(medium)


def check_stills(medium: Medium) -> None:
    """Complain about pictures that make no video.

    Raises:
        MediaError: `no_media`.
    """
    if isinstance(medium, Stills):
        _made(medium)


def _made(medium: Cell | Stills) -> bytes:
    if isinstance(medium, Stills):
        try:
            return video_of_stills([path.read_bytes() for path in medium.paths], times=medium.times)
        except (MediaError, OSError) as error:
            detail = error.detail if isinstance(error, MediaError) else error
            raise MediaError("no_media", f"{label_of(medium)}: {detail}") from error
    data = cell_bytes(medium.table, row=medium.row, column=medium.column, part=medium.part)
    if hashlib.sha256(data).hexdigest() != medium.sha256:
        raise MediaError("unreadable", f"{label_of(medium)}: changed while it was imported; import it again")
    return data


@dataclass(kw_only=True)
class Opened:
    """A medium whose bytes can be read: by path, in any process, and a piece at a time."""

    medium: Medium
    path: Path
    size: int
    digest: bytes = b""
    """sha256 of what `pieces` gave."""
    _memory: int = field(default=-1)

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes, as many as there were when it was opened.

        Raises:
            MediaError: `unreadable`.
        """
        digest, left = hashlib.sha256(), self.size
        try:
            with open(self.path, "rb", buffering=0) as file:
                while left and (piece := file.read(min(_PIECE, left))):
                    digest.update(piece)
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise MediaError("unreadable", f"{label_of(self.medium)}: {error}") from error
        if left:
            raise MediaError(
                "unreadable", f"{label_of(self.medium)}: became shorter while it was imported; import it again"
            )
        self.digest = digest.digest()

    def close(self) -> None:
        """Forget what was made in memory."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1


def opened(medium: Medium) -> Opened:
    """Return a medium to be read.

    Raises:
        MediaError: `no_media`, `unreadable`.
    """
    if isinstance(medium, Path):
        if not os.path.isfile(medium):
            raise MediaError("no_media", f"{medium}: {'is no file' if os.path.exists(medium) else 'no such file'}")
        return Opened(medium=medium, path=medium, size=size_of(medium))
    data = _made(medium)
    memory = os.memfd_create("medium")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(data)
    except BaseException:
        os.close(memory)
        raise
    return Opened(medium=medium, path=Path(f"/proc/{os.getpid()}/fd/{memory}"), size=len(data), _memory=memory)


def unchanged(media: Sequence[Opened], *, digest: bytes) -> None:
    """Complain when what was copied is not what was examined.

    Args:
        media: a clip's files, copied.
        digest: as `media_digest` gives it.

    Raises:
        MediaError: `unreadable`.
    """
    if hashlib.sha256(b"".join(one.digest for one in media)).digest() != digest:
        names = ", ".join(label_of(one.medium) for one in media)
        raise MediaError("unreadable", f"{names}: changed while it was imported; import it again")
