"""JSON files that hold one long list or object, a part at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from arcvideo.shards.text import named_once, open_text
from arcvideo.tasks import RecordError

_PIECE = 1 << 18
"""Characters that are read at once."""
_LONGEST_WORD = 32
"""Characters before the end of what was read in which an error may be a word that goes on behind it."""
_SPACE = re.compile(r"[ \t\n\r]*")
_SIGNS = ("[", "]", "{", "}", ",")
_STEP = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]|[^"\[\]{},]+', re.DOTALL)
"""A text, a sign of structure, or what stands between them."""
_DECODER = json.JSONDecoder(object_pairs_hook=named_once)


def json_parts(path: Path, *, encoding: str | None = None) -> Iterator[Any]:
    """Yield the elements of the list in a JSON file, or (name, value) of the object there.

    A part that cannot be held, for it is nested without end, has a number of thousands of digits or names something
    twice, is passed over; its value is a RecordError.

    Raises:
        ValueError: it is not JSON, or neither of both; also after what was good before the damage.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such annotation file")
    with open_text(path, encoding=encoding) as file:
        text = _Text(file, path=path)
        opening = text.sign()
        if opening not in ("[", "{"):
            raise text.error("neither a list nor an object")
        text.take(opening)
        closing = "]" if opening == "[" else "}"
        while text.sign() != closing:
            yield text.value() if opening == "[" else text.pair()
            if text.sign() != closing:
                text.take(",")
                if text.sign() == closing:
                    raise text.error("a comma with nothing behind it")
        text.take(closing)
        if text.sign():
            raise text.error("more behind its end")


class _Text:
    """What is left to be read of a file, the next of it in memory."""

    def __init__(self, file: IO[str], *, path: Path) -> None:
        self._file, self._path = file, path
        self._rest, self._at, self._passed = "", 0, 0

    def error(self, detail: str, *, further: int = 0) -> ValueError:
        """Return the error of what stands here."""
        return ValueError(f"{self._path}: is not JSON: {detail}, at character {self._passed + self._at + further}")

    def sign(self) -> str:
        """Return the next character that is no space, "" at the end."""
        while True:
            self._at = _SPACE.match(self._rest, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._rest):
                return self._rest[self._at]
            if not self._more(_PIECE):
                return ""

    def take(self, sign: str) -> None:
        """Go on behind a character."""
        if self.sign() != sign:
            raise self.error(f"expected {sign!r}")
        self._at += 1

    def pair(self) -> tuple[str, Any]:
        """Return the next name and value."""
        if self.sign() != '"':
            raise self.error("expected a name in double quotes")
        name = self.value()
        self.take(":")
        return name, self.value()

    def value(self) -> Any:
        """Return the next value; twice as much is read whenever it goes on behind what there is."""
        self.sign()
        piece = _PIECE
        while True:
            try:
                value, end = _DECODER.raw_decode(self._rest, self._at)
                if end < len(self._rest) or not self._more(piece):
                    self._at = end
                    return value
                continue  # a number may go on
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated") or error.pos >= len(self._rest) - _LONGEST_WORD
                before = self._passed
                if not goes_on or not self._more(piece):
                    raise self.error(error.msg, further=error.pos + before - self._passed - self._at) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, nesting without end
                self._pass_over()
                return RecordError("broken_json", str(error))
            piece *= 2

    def _pass_over(self) -> None:
        """Go on behind a value that is closed somewhere, whatever it holds.

        Raises:
            ValueError: it is not.
        """
        depth = 0
        while True:
            match = _STEP.match(self._rest, self._at)
            if match is None or (match.end() == len(self._rest) and match[0] not in _SIGNS):
                if not self._more(_PIECE):  # what comes may belong to it
                    raise self.error("a value has no end")
                continue
            if not depth and match[0] in ",]}":
                return
            self._at = match.end()
            depth += (match[0] in "[{") - (match[0] in "]}")

    def _more(self, count: int) -> bool:
        """Read on; whether there was something."""
        self._passed += self._at
        read = self._file.read(count)
        self._rest, self._at = self._rest[self._at :] + read, 0
        return bool(read)
