"""A callback: notes beside the stages what became of a run; a message to a chat would be sent in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Diary:
    """Writes `diary.txt` into the stage's folder. Methods that are not needed may be left out."""

    def begin(self, *, folder: Path, config: Mapping[str, Any]) -> None:
        """Say which stage begins."""
        self._file = folder / "diary.txt"
        self._note(f"begin {config['stage']['name']}")

    def step(self, values: Mapping[str, Any]) -> None:
        """Note a step."""
        self._note(f"step {values['step']}")

    def checkpoint(self, path: Path, *, step: int) -> None:
        """Note a checkpoint, which could be copied elsewhere from here."""
        self._note(f"checkpoint {step} {path.name}")

    def evaluation(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Note which figures there are."""
        self._note(f"evaluation {step} {' '.join(sorted(metrics))}")

    def end(self, *, status: int) -> None:
        """Note how it ended."""
        self._note(f"end {status}")

    def _note(self, line: str) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
