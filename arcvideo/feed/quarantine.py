"""What could not be used: written down once with its reason, counted, and limited by a budget."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from arcvideo.files import cut_torn_row, json_line, parsed_lines, read_lines
from arcvideo.planning.settings import QuarantineSettings
from arcvideo.planning.table import SourceTable
from arcvideo.processes.locks import hold
from arcvideo.shards.members import Problem

UNREADABLE = ("media", "read")
"""Stages of failure that are met in training, when a clip's media are read; the index knows of all others."""


ROW = dict.fromkeys(("source", "key", "stage", "reason", "detail", "shard"), str)
"""Fields of a row of the file."""


class QuarantineBudgetError(ValueError):
    """A source has more damage than `data.quarantine` allows."""


class Quarantine:
    """All known problems of all sources; the same problem counts once, however often and wherever it is met.

    The ranks of a run share one file. Each adds what it meets and reads what the others added, under the file's lock.
    """

    def __init__(
        self, tables: Sequence[SourceTable], *, settings: QuarantineSettings, file: Path | None = None
    ) -> None:
        """Take over what the indexes already know, and what a run before a restart could not read.

        Args:
            file: JSON lines, the same for all ranks; rows that it already holds are not written again.
        """
        self._settings = settings
        self._file = file
        self._read = 0
        self._written: set[tuple[str, str]] = set()
        self._good: dict[str, int] = {table.name: table.items for table in tables}
        self._problems: dict[str, dict[str, Problem]] = {table.name: {} for table in tables}
        self._write([(table.name, problem) for table in tables for problem in table.quarantined])
        # Only now: what other ranks meet from here on must not make this rank's data depend on who was faster.
        self._unreadable = {
            (source, problem.key)
            for source, problems in self._problems.items()
            for problem in problems.values()
            if problem.stage in UNREADABLE
        }
        for table in tables:
            self._check(table.name)

    def unreadable(self, source: str, key: str) -> bool:
        """Return whether this clip's media could not be read before, in this run or before its restart.

        It is not tried again: a file that took too long once might be in time the next time, and the data of a resumed
        run would then differ from those of an undisturbed one.
        """
        return (source, key) in self._unreadable

    def add(self, source: str, problem: Problem) -> None:
        """Counts and writes a problem.

        Raises:
            QuarantineBudgetError: the source's budget is exceeded, over all ranks.
        """
        if problem.stage in UNREADABLE:
            self._unreadable.add((source, problem.key))
        if _name(problem) not in self._problems[source]:
            self._write([(source, problem)])
            self._check(source)

    def count(self, source: str) -> int:
        """Return problems of a source, with those that other ranks have written down."""
        self._write([])
        return len(self._problems[source])

    def reasons(self, source: str) -> Mapping[str, int]:
        """Return reason -> how many, most frequent first."""
        return dict(Counter(problem.reason for problem in self._problems[source].values()).most_common())

    def _write(self, problems: Sequence[tuple[str, Problem]]) -> None:
        """Add problems to the books and to the file, after reading what other ranks wrote since."""
        for source, problem in problems:
            self._problems[source].setdefault(_name(problem), problem)
        if self._file is None or not (problems or self._file.exists()):
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "ab+") as file:
            hold(file, path=self._file)
            file.seek(self._read)
            content = file.read()
            ends = content.rfind(b"\n") + 1
            if ends < len(content):
                cut_torn_row(self._file)
                file.seek(0, os.SEEK_END)
            self._take_over(content[:ends])
            rows = [
                json_line({"source": source, **asdict(problem)}, checked=True)
                for source, problem in problems
                if (source, _name(problem)) not in self._written
            ]
            file.write("".join(rows).encode())
            file.flush()
            self._read = file.tell()
        self._written.update((source, _name(problem)) for source, problem in problems)

    def _take_over(self, data: bytes) -> None:
        """Rows of the file: written by other ranks, or before a restart. The index tells again what it knows itself."""
        for row in parsed_lines(data, name=str(self._file), fields=ROW):
            source = row["source"]
            if source not in self._problems:
                continue
            problem = Problem(**{name: row[name] for name in ROW if name != "source"})
            self._written.add((source, _name(problem)))
            if problem.stage in UNREADABLE:
                self._problems[source].setdefault(_name(problem), problem)

    def _check(self, source: str) -> None:
        bad = len(self._problems[source])
        rate = bad / max(1, bad + self._good[source])
        settings = self._settings
        if bad <= settings.max_count and (rate <= settings.max_rate or bad == 1):
            return
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.reasons(source).items())
        first = next(iter(self._problems[source].values()))
        raise QuarantineBudgetError(
            f"data.sources.{source}: {bad} quarantined ({rate:.1%} of its samples) exceed data.quarantine "
            f"(max_count={settings.max_count}, max_rate={settings.max_rate}): {reasons}; for example {first.key}: "
            f"{first.reason}: {first.detail}. Repair the shards, or raise the budget if the loss is meant"
            + (f". All rows: {self._file}" if self._file else "")
        )


def _name(problem: Problem) -> str:
    """Return equal for the same problem, whoever meets it."""
    return f"{problem.shard} {problem.key} {problem.reason} {problem.detail}"


def quarantined(folder: Path, *, sources: Iterable[str]) -> dict[str, int]:
    """Return source -> distinct problems of any rank, before a restart too; each rank writes a file of its own."""
    files = [folder / "quarantine.jsonl", *folder.glob("quarantine-[0-9]*.jsonl")]
    rows = {json_line(row): row for file in files if file.exists() for row in read_lines(file, fields=ROW)}
    counts = Counter(row["source"] for row in rows.values())
    return {name: counts[name] for name in sources}
