"""Text that users wrote, read in one place: byte order marks, UTF-16, and bytes that are none of it."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from arcvideo.tasks import RecordError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HALVES = "half-characters"
"""Name of what stands in for UTF-16 and UTF-32 that is none: half a character, which `whole` finds."""
codecs.register_error(_HALVES, lambda error: ("\ud800", error.end))  # type: ignore[attr-defined]
_GZIP = b"\x1f\x8b"
_LONGEST_CELL = 1 << 26
"""Characters; a cell beyond is what a quote without its end makes of the rest of a file."""
_HALF = re.compile("[\ud800-\udfff]")


def encoding_of(start: bytes) -> str:
    """Return the encoding that the first bytes of a text show: by a mark, or by the zeros of UTF-16; else UTF-8."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    if len(start) >= 2 and start[0] and not start[1]:
        return "utf-16-le"
    return "utf-16-be" if len(start) >= 2 and not start[0] and start[1] else "utf-8"


def decoded(data: bytes, *, encoding: str | None = None) -> str:
    """Return the text of a whole file or record, without its byte order mark.

    Args:
        data: the bytes.
        encoding: Python's name of it; None looks at the first bytes.

    Raises:
        RecordError: `broken_text`: the bytes are not in that encoding.
    """
    name = encoding or encoding_of(data)
    try:
        return data.decode(name)
    except (UnicodeError, LookupError) as error:
        raise RecordError("broken_text", f"the text is not {name} ({error}); convert it to UTF-8") from None


def json_value(data: bytes) -> Any:
    """Return what JSON bytes hold.

    Raises:
        RecordError: `broken_json`.
    """
    try:
        return json_of(decoded(data))
    except RecordError as error:
        raise RecordError("broken_json", error.detail) from None


def json_of(text: str, *, once: bool = True) -> Any:
    """Return what a JSON text holds.

    Args:
        text: of one row or record, or of a file.
        once: refuse a name that stands twice in an object; a whole file is not lost for it, the last value counts.

    Raises:
        RecordError: `broken_json`; numbers of thousands of digits and nesting without end are that too.
    """
    try:
        return json.loads(text, object_pairs_hook=named_once if once else None)
    except (ValueError, RecursionError) as error:
        raise RecordError("broken_json", str(error)) from None


def named_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs; for decoders of JSON, which take the last of two values of one name.

    Raises:
        ValueError: a name stands twice.
    """
    named = dict(pairs)
    if len(named) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:80]!a} stands twice in one object; which value counts?")
    return named


def read_text(path: Path, *, encoding: str | None = None) -> str:
    """Return the text of a file.

    Raises:
        RecordError: `broken_text`.
        OSError: it cannot be read.
    """
    return decoded(path.read_bytes(), encoding=encoding)


def open_text(path: Path, *, encoding: str | None = None, newline: str = "\n") -> IO[str]:
    """Open a file of many rows. Bytes that are not in its encoding become lone surrogates, which `whole` finds, so that
    one bad row does not hide the others.

    Raises:
        ValueError: an encoding that Python does not know, or a compressed file.
        OSError: it cannot be read.
    """
    file = open(path, "rb")  # noqa: SIM115 - what is returned closes it
    try:
        start = file.peek(4)[:4]
        if start.startswith(_GZIP):
            raise ValueError(f"{path}: is compressed; unpack it first (gunzip -k)")
        try:
            name = codecs.lookup(encoding).name if encoding else encoding_of(start)
        except LookupError:
            raise ValueError(f"--encoding {encoding}: Python knows no such encoding") from None
        errors = _HALVES if name.startswith(("utf-16", "utf-32")) else "surrogateescape"
        try:
            text = io.TextIOWrapper(file, encoding=name, errors=errors, newline=newline)
            codecs.getincrementaldecoder(name)(errors).decode(start)
        except (LookupError, UnicodeError) as error:  # one of bytes, or UTF-16 without its mark
            raise ValueError(f"--encoding {encoding}: {path} cannot be read so: {error}") from None
    except BaseException:
        file.close()
        raise
    return text


def rows(path: Path, *, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    r"""Yield (number from 1, line) of a text file, lines cut at "\n" alone and without it or a "\r" before it."""
    with open_text(path, encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            yield number, line.rstrip("\r\n")


def whole(text: str) -> str:
    """Return the text.

    Raises:
        RecordError: `broken_text`: it holds half a character, or bytes that are not in its file's encoding.
    """
    half = _HALF.search(text)
    if half is None:
        return text
    bad = half[0]
    if "\udc80" <= bad <= "\udcff":
        detail = f"byte 0x{ord(bad) - 0xDC00:02x} is not UTF-8; name the file's encoding, like --encoding cp1252"
    else:
        detail = f"half a character (\\u{ord(bad):04x}), as cutting an emoji in two leaves it"
    raise RecordError("broken_text", detail)


def delimited_rows(
    path: Path, *, encoding: str | None = None, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str | None] | RecordError]]:
    """Yield (number of its last line, cells by column) of each row of a CSV or TSV file; None stands for cells that the
    row lacks.

    In place of a row with a quote that has no end, or with more cells than there are columns, a RecordError is yielded;
    what follows is read.

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
            assert columns is not None
            if any(cells[len(columns) :]):
                wrong = f"{len(cells)} cells for {len(columns)} columns; a cell with {delimiter!r} in it needs quotes"
            if wrong:
                yield lines.number, RecordError("bad_row", wrong)
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
