"""CSV and TSV files, a row at a time: an odd row costs itself, and is told."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from arcvideo.data.importers.drafts import ImportReport
from arcvideo.shards.text import open_text

_LONGEST_CELL = 1 << 26
"""Characters; a cell beyond is what a quote without its end makes of the rest of a file."""


def delimited_rows(
    path: Path, *, report: ImportReport, encoding: str | None = None, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yield (number of its last line, cells by column) of each row; None stands for cells that the row lacks.

    A row with a quote that has no end, or with more cells than there are columns, is refused; what follows is read.

    Raises:
        ValueError: two columns of one name; an encoding that Python does not know.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    with open_text(path, encoding=encoding, newline="") as file:
        lines, columns = _Lines(file), None
        while True:
            cells, wrong = lines.cells(delimiter)
            if cells is None:
                return
            if columns is None and (cells or wrong):
                columns = _columns(cells, path=path)
                continue
            if not cells and not wrong:
                continue  # an empty line
            report.rows += 1
            assert columns is not None
            if any(cells[len(columns) :]):
                wrong = f"{len(cells)} cells for {len(columns)} columns; a cell with {delimiter!r} in it needs quotes"
            if wrong:
                report.refuse(f"line {lines.number}", reason="bad_row", detail=wrong)
                continue
            given: list[str | None] = [*cells[: len(columns)]]
            missing: list[str | None] = [None] * (len(columns) - len(given))
            yield lines.number, dict(zip(columns, given + missing, strict=True))


def _columns(cells: list[str], *, path: Path) -> list[str]:
    twice = next((name for name in cells if name and cells.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: two columns are called {twice!r}; rename one")
    return cells


class _Lines:
    """The lines of a file, of which those of the last row can be read again."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._again: deque[str] = deque()
        self._row: list[str] = []
        self._ended = False
        self.number = 0
        """Lines read so far."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._file, None)
        if line is None:
            self._ended = True
            raise StopIteration
        self.number += 1
        self._row.append(line)
        return line

    def cells(self, delimiter: str) -> tuple[list[str] | None, str]:
        """Return the cells of the next row, None at the end, and what is wrong with it; then only its first line was
        read.
        """
        self._row, wrong = [], ""
        cells: list[str] | None = []
        try:
            cells = next(csv.reader(self, delimiter=delimiter), None)
            if self._row and self._ended:  # a row that is complete asks for no more lines
                wrong = "a quote in this line has no end"
        except csv.Error as error:
            wrong = f"{error}: a quote in this line has no end, or a cell is too long"
        if wrong:
            _, *behind = self._row
            self._again.extendleft(reversed(behind))
            self.number -= len(behind)
            self._ended = False
        return cells, wrong
