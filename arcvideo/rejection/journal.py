"""The journal of rejection sampling: every answer that was drawn, so that nothing is drawn twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arcvideo.files import cut_torn_row, json_line, parsed_lines
from arcvideo.processes.locks import appending
from arcvideo.rejection.selection import Drawn
from arcvideo.structured import filled


def journal_path(out: Path, *, name: str, unit: int) -> Path:
    """Return where the answers of a shard stand."""
    return out / f"{name}-{unit:06d}.answers.jsonl"


@dataclass(kw_only=True)
class Answers:
    """What a journal holds."""

    origin: dict[str, Any] = field(default_factory=dict)
    """What the answers depend on."""
    rows: dict[str, Drawn] = field(default_factory=dict)
    """Key of a question -> its answers."""
    lost: dict[str, str] = field(default_factory=dict)
    """Key of a question -> why it could not be asked."""
    written: dict[str, Any] | None = None
    """How the shard was chosen from these answers when it was written last."""

    def take(self, line: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            ValueError: it is none of a journal.
        """
        if isinstance(origin := line.get("origin"), dict):
            self.origin = origin
        elif isinstance(written := line.get("written"), dict):
            self.written = written
        elif isinstance(line.get("lost"), str) and isinstance(line.get("key"), str):
            self.lost[line["key"]] = line["lost"]
        else:
            self.rows[line["key"]] = _drawn(line)

    def has(self, key: str) -> bool:
        """Return whether the question was asked, or found impossible to ask."""
        return key in self.rows or key in self.lost


def read_answers(path: Path) -> Answers:
    """Return what stands in a journal, whoever writes it; empty without one. A half line at its end does not count."""
    answers = Answers()
    data = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(parsed_lines(data[: data.rfind(b"\n") + 1], name=str(path), fields={}), start=1):
        try:
            answers.take(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path}, row {number}: none of a journal; delete it, what it says is drawn again"
            ) from None
    return answers


def _drawn(line: Mapping[str, Any]) -> Drawn:
    """Return the answers of a line.

    Raises:
        ValueError: it has others than a journal writes.
    """
    row = filled(Drawn, line)
    if len({len(row.texts), len(row.finished), len(row.scores)}) != 1 or row.number < 0:
        raise ValueError("answers without scores")
    return row


class Journal:
    """JSON lines: what was asked for, then a line for every question, and one when the shard was written from them."""

    def __init__(self, path: Path, *, origin: Mapping[str, Any]) -> None:
        """Open or begin; waits for another process that draws for the same shard.

        Args:
            path: see `journal_path`.
            origin: what the answers depend on, JSON-able.

        Raises:
            ValueError: the answers there were drawn otherwise; the message names what differs.
        """
        self.path = path
        with ExitStack() as opened:
            self._file = opened.enter_context(appending(path))
            self.answers = read_answers(path)
            if self.answers.origin:
                _same(self.answers.origin, dict(origin), path=path)
            cut_torn_row(path)
            if not self.answers.origin:
                self._append([{"origin": dict(origin)}])
            self._open = opened.pop_all()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, rows: Iterable[Drawn]) -> None:
        """Remember answers."""
        self._append(asdict(row) for row in rows)

    def lose(self, keys: Iterable[str], *, reason: str) -> None:
        """Remember questions that cannot be asked."""
        self._append({"key": key, "lost": reason} for key in keys)

    def write(self, how: Mapping[str, Any]) -> None:
        """Remember that the shard stands as chosen in this way."""
        self._append([{"written": dict(how)}])

    def _append(self, lines: Iterable[dict[str, Any]]) -> None:
        lines = list(lines)
        self._file.write("".join(json_line(line, checked=True) for line in lines))
        self._file.flush()
        for line in lines:
            self.answers.take(line)


def _same(old: Mapping[str, Any], new: Mapping[str, Any], *, path: Path) -> None:
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if differing:
        details = ", ".join(f"{name} ({old.get(name)} there, {new.get(name)} now)" for name in differing)
        raise ValueError(f"{path} holds answers that were drawn otherwise: {details}; give another out= or name=")
