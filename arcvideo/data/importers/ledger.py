"""The ledger of an import: what it was asked for, and a line for each finished shard. A stopped import goes on by it.

A shard gets its line when it is complete under its hidden name and on the disk, then its own name. A stop at any
instant leaves a ledger whose lines are finished shards, the last perhaps still under its hidden name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from arcvideo.data.importers.sources import label_of, state_of
from arcvideo.data.importers.spool import Draft
from arcvideo.files import json_line, parsed_lines
from arcvideo.processes.locks import hold
from arcvideo.seals import publish, sha256_of, sidecar
from arcvideo.shards.seal import LEDGER
from arcvideo.shards.write import scratch_of

SUFFIX = LEDGER
"""Of a ledger, behind the name of its shards."""
_VERSION = 2
_NEW = "give an empty --out or another --name, or delete it and its shards"


@dataclass(kw_only=True)
class Part:
    """What went into one shard; a line of the ledger."""

    shard: str = ""
    size: int = 0
    sha256: str = ""
    drafts: int = 0
    """Drafts looked at, used or not."""
    used: int = 0
    """Rows used."""
    states: list[str] = field(default_factory=list)
    """What each draft and its files were like, 16 hex digits each."""
    problems: list[dict[str, str]] = field(default_factory=list)


def source_state(annotations: Sequence[Path]) -> list[list[Any]]:
    """Return what changes when annotation files change; of folders the name alone, their files are in the drafts."""
    return [[path.name, sha256_of(path) if path.is_file() else ""] for path in annotations]


def draft_state(draft: Draft) -> str:
    """Return 16 hex digits that change with a draft, or with size or time of its files."""
    files = [state_of(medium) for medium in (draft.media, draft.sound, *draft.more)]
    text = json.dumps([draft.key, draft.items, draft.extra, files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class OtherImport(ValueError):
    """What lies there is of another import, or of one that is running."""


class Ledger:
    """The finished shards of an import; one process at a time has it open."""

    def __init__(self, path: Path, *, request: Mapping[str, Any]) -> None:
        """Read it, and write nothing yet.

        Args:
            path: of the file; shards lie beside it.
            request: what the import is asked for, JSON-able.

        Raises:
            OtherImport: it tells of another import, or a shard is not what it was.
        """
        self.path, self._request = path, {"version": _VERSION, **request}
        self._file: IO[bytes] | None = None
        self.parts: list[Part] = []
        """Finished shards, without states and problems."""
        self._read()

    def __enter__(self) -> Ledger:
        """Take hold of it, read it again and finish what was nearly finished.

        Raises:
            OtherImport: another process has it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")
        if not hold(self._file, path=self.path, wait=False):
            self._file.close()
            raise OtherImport(f"{self.path}: another import is writing these shards; wait until it has ended")
        self._read()
        if not self.parts:
            self._file.truncate(0)
            self._append(self._request)
        else:
            self._file.truncate(self._whole)
            last = self.parts[-1]
            if not (self.path.parent / last.shard).is_file():
                publish(scratch_of(self.path.parent / last.shard), self.path.parent / last.shard)
            elif not sidecar(self.path.parent / last.shard).is_file():
                publish(self.path.parent / last.shard, self.path.parent / last.shard)
        for path in self.torn():
            path.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def torn(self) -> list[Path]:
        """Return what a stop left under hidden names; nobody reads it."""
        name = re.escape(self.path.name.removesuffix(SUFFIX))
        hidden = re.compile(rf"\.{name}(-\d{{6,}}\.tar(\..+)?|\.quarantine\.jsonl\..+)\.partial")
        folder = self.path.parent
        return [path for path in folder.iterdir() if hidden.fullmatch(path.name)] if folder.is_dir() else []

    def add(self, part: Part) -> None:
        """Append a shard that is complete under its hidden name; the line is on the disk when this returns."""
        self._append(asdict(part))
        self.parts.append(replace(part, states=[], problems=[]))

    def _append(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json_line(row, checked=True).encode("ascii"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def unfinished(self, drafts: Iterable[Draft], *, each: Callable[[Part], object]) -> Iterator[Draft]:
        """Yield the drafts that are in no finished shard.

        Args:
            drafts: all.
            each: called with each finished shard, when its drafts were passed.

        Raises:
            OtherImport: a draft of a finished shard, or one of its files, is not what it was then.
        """
        waiting = iter(drafts)
        for _, part in islice(self._lines(), len(self.parts)):
            for state in part.states:
                draft = next(waiting, None)
                if draft is None or draft_state(draft) != state:
                    of = "" if draft is None else draft.labels[0] if draft.media is None else label_of(draft.media)
                    raise OtherImport(
                        f"{of or 'the source'}: changed since {part.shard} was written (rows, or size or time of a "
                        f"file): put it back as it was; else {_NEW} ({self.path})"
                    )
            each(part)
        yield from waiting

    @property
    def drafts(self) -> int:
        """Drafts in finished shards."""
        return sum(part.drafts for part in self.parts)

    def _read(self) -> None:
        """Read the lines that are whole; a last one whose shard is not there is left out."""
        self.parts, self._whole = [], 0
        ends = []
        for end, part in self._lines():
            self.parts.append(replace(part, states=[], problems=[]))  # so that memory does not grow with the clips
            ends.append(end)
        if self.parts and not self._is_there(self.parts[-1], last=True):
            self.parts.pop()
        for part in self.parts[:-1]:
            self._is_there(part, last=False)
        if self.parts:
            self._whole = ends[len(self.parts) - 1]

    def _lines(self) -> Iterator[tuple[int, Part]]:
        """Yield (place of its end, shard) of each line behind the first; a stop may have cut the last one short."""
        if not self.path.is_file():
            return
        end, first = 0, None
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    (row,) = parsed_lines(line, name="")
                    if first is None:
                        first = row
                        continue
                    if number == 2:
                        self._compare(first)
                    yield end, Part(**row)
                except (ValueError, TypeError) as error:
                    if isinstance(error, OtherImport):
                        raise
                    raise OtherImport(f"{self.path}, line {number}: was changed since it was written: {_NEW}") from None

    def _compare(self, then: Any) -> None:
        """Complain when the import was asked for something else."""
        if not isinstance(then, dict) or then.get("version") != _VERSION:
            raise OtherImport(f"{self.path}: of another version, which cannot go on here: {_NEW}")
        for name, now in json.loads(json.dumps(self._request)).items():
            if then.get(name) == now:
                continue
            if name == "annotations":
                changed = next((str(one[0]) for one in now if one not in (then.get(name) or [])), "the list of them")
                raise OtherImport(f"{changed}: the annotations changed since this import began ({self.path}): {_NEW}")
            raise OtherImport(f"--{name}: was {then.get(name)}, is {now} ({self.path}): give what was given, or {_NEW}")

    def _is_there(self, part: Part, *, last: bool) -> bool:
        """Return whether a shard is there, of the last one also under its hidden name."""
        path, scratch = self.path.parent / part.shard, scratch_of(self.path.parent / part.shard)
        if path.is_file():
            if path.stat().st_size == part.size:
                return True
            raise OtherImport(f"{path}: is not what this import wrote ({part.size} bytes): put it back, or {_NEW}")
        if not last:
            raise OtherImport(f"{path}: is gone, though the import finished it: put it back, or {_NEW}")
        return scratch.is_file() and scratch.stat().st_size == part.size and sha256_of(scratch) == part.sha256
