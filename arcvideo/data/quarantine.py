"""What could not be used: written down once with its reason, counted, and limited by a budget."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from arcvideo.data.members import Problem
from arcvideo.data.mixture import SourceTable
from arcvideo.data.settings import QuarantineSettings

UNREADABLE = ("media", "read")
"""Stages of failure that are met in training, when a clip's media are read; the index knows of all others."""


class QuarantineBudgetError(ValueError):
    """A source has more damage than `data.quarantine` allows."""


class Quarantine:
    """All known problems of all sources; the same problem counts once, however often it is met."""

    def __init__(
        self, tables: Sequence[SourceTable], *, settings: QuarantineSettings, file: Path | None = None
    ) -> None:
        """Takes over what the indexes already know, and what a run before a restart could not read.

        Args:
            file: JSON lines; rows that it already holds are not written again.
        """
        self._settings = settings
        self._file = file
        self._written = set(_rows(file))
        self._unreadable: set[tuple[str, str]] = set()
        self._good: dict[str, int] = {}
        self._problems: dict[str, dict[str, Problem]] = {}
        for table in tables:
            self._good[table.name] = table.items
            self._problems[table.name] = {}
            for problem in table.quarantined:
                self._note(table.name, problem)
        for row in self._written:
            found = json.loads(row)
            source = found.pop("source")
            if source in self._problems and found["stage"] in UNREADABLE:
                self._note(source, Problem(**found))
        for table in tables:
            self._check(table.name)

    def unreadable(self, source: str, key: str) -> bool:
        """Whether this clip's media could not be read before, in this run or before its restart.

        It is not tried again: a file that took too long once might be in time the next time, and the data of a resumed
        run would then differ from those of an undisturbed one.
        """
        return (source, key) in self._unreadable

    def add(self, source: str, problem: Problem) -> None:
        """Counts and writes a problem.

        Raises:
            QuarantineBudgetError: the source's budget is exceeded.
        """
        if self._note(source, problem):
            self._check(source)

    def count(self, source: str) -> int:
        return len(self._problems[source])

    def reasons(self, source: str) -> Mapping[str, int]:
        """Reason -> how many, most frequent first."""
        return dict(Counter(problem.reason for problem in self._problems[source].values()).most_common())

    def _note(self, source: str, problem: Problem) -> bool:
        name = f"{problem.key} {problem.reason} {problem.detail}"
        if name in self._problems[source]:
            return False
        self._problems[source][name] = problem
        if problem.stage in UNREADABLE:
            self._unreadable.add((source, problem.key))
        row = json.dumps({"source": source, **asdict(problem)}, ensure_ascii=False)
        if self._file is not None and row not in self._written:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(row + "\n")
            self._written.add(row)
        return True

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


def _rows(file: Path | None) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file is not None and file.exists() else []
