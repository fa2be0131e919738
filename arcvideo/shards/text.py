"""Text that users wrote, read in one place: byte order marks, UTF-16, and bytes that are none of it."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
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
_GZIP = b"\x1f\x8b"
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


def json_of(text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        RecordError: `broken_json`; numbers of thousands of digits and nesting without end are that too.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError("broken_json", str(error)) from None


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
        errors = "replace" if name.startswith(("utf-16", "utf-32")) else "surrogateescape"
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
