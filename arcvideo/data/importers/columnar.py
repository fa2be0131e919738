"""Parquet and Arrow files, a few rows at a time: their cells may hold videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from arcvideo.media.errors import MediaError

PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc")
_ROWS = 64
"""Rows that are read at once where no cell can hold a file."""
_readers: dict[tuple[Path, str], _Cells] = {}
_MOST_READERS = 4


def columnar_rows(path: Path, *, start: int = 0, column: str | None = None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (number from 0, row) of a Parquet or Arrow file.

    Args:
        path: of the file.
        start: rows before it are passed over, without being read where the file allows it.
        column: the only one that is read; None reads all.

    Raises:
        ValueError: pyarrow is missing, or the file cannot be read.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError(f"{path}: needs pyarrow (pip install pyarrow)") from error
    number = start
    try:
        for first, batch in _batches(path, start=start, column=column):
            names = batch.schema.names
            for place in range(max(0, start - first), batch.num_rows):
                number = first + place
                yield number, {name: batch.column(name)[place].as_py() for name in names}
    except (pyarrow.ArrowException, OSError) as error:  # damaged pages are one or the other
        raise ValueError(f"{path}: cannot be read after row {number}: {error}") from None


def file_of(value: Any) -> tuple[bytes, str] | None:
    """Return the file that a cell holds, and its name as far as the cell says; None for one that holds none."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return value["bytes"], str(value.get("path") or "")
    return (value, "") if isinstance(value, bytes) else None


def cell_bytes(path: Path, *, row: int, column: str, part: int | None = None) -> bytes:
    """Return the file in a cell, or in a part of the list in it. Rows that ascend cost one pass over the table.

    Raises:
        MediaError: there is none any more.
    """
    key = (path, column)
    reader = _readers.pop(key, None) or _Cells(path, column)
    while len(_readers) >= _MOST_READERS:
        del _readers[next(iter(_readers))]
    _readers[key] = reader
    try:
        value = reader.value(row)
        found = file_of(value if part is None else value[part])
    except (ValueError, LookupError, TypeError, OSError) as error:
        _readers.pop(key, None)
        raise MediaError("unreadable", f"{path}, row {row + 1}: {error}") from error
    if found is None:
        raise MediaError("unreadable", f"{path}, row {row + 1}: holds no file any more; import it again")
    return found[0]


class _Cells:
    """A column that is read from front to back."""

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        self._rows: Iterator[tuple[int, Mapping[str, Any]]] = iter(())
        self._next: int | None = None

    def value(self, row: int) -> Any:
        if self._next is None or not 0 <= row - self._next < _ROWS:
            self._rows, self._next = columnar_rows(self._path, start=row, column=self._column), row
        for number, values in self._rows:
            self._next = number + 1
            if number == row:
                return values[self._column]
        raise ValueError("the table ends before it")


def _batches(path: Path, *, start: int, column: str | None) -> Iterator[tuple[int, Any]]:
    """Yield (number of the first row, rows)."""
    import pyarrow
    from pyarrow import ipc, parquet

    if path.suffix.lower() in PARQUET:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            firsts = [0, *accumulate(sizes)]
            groups = [group for group in range(len(sizes)) if firsts[group + 1] > start]
            first = firsts[groups[0]] if groups else 0
            columns = None if column is None else [column]
            rows = 1 if any(_holds_bytes(part.type) for part in file.schema_arrow) else _ROWS
            for batch in file.iter_batches(batch_size=rows, row_groups=groups, columns=columns):
                yield first, batch
                first += batch.num_rows
        return
    source = pyarrow.memory_map(str(path))
    first = 0
    with source:
        try:
            reader = ipc.open_file(source)
            batches = (reader.get_batch(place) for place in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:  # what Hugging Face datasets keep on disk is a stream
            batches = iter(ipc.open_stream(pyarrow.memory_map(str(path))))
        for batch in batches:
            if first + batch.num_rows > start:
                yield first, batch if column is None else batch.select([column])
            first += batch.num_rows


def _holds_bytes(kind: Any) -> bool:
    """Return whether values of an Arrow type can be, or hold, bytes."""
    from pyarrow import types

    if types.is_binary(kind) or types.is_large_binary(kind):
        return True
    return any(_holds_bytes(kind.field(place).type) for place in range(kind.num_fields))
