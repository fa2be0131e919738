"""A logger: a table of the losses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class CsvLogger:
    """Writes `losses.csv` into the stage's folder; `last` is the last step in it, which no resumed run writes again."""

    def __init__(self, settings: Any, *, folder: Path, name: str, config: Mapping[str, Any], start: int) -> None:
        self._file = (folder / "losses.csv").open("a+", buffering=1, encoding="utf-8")
        self._file.seek(0)
        steps = (line.split(",")[0] for line in self._file)
        self.last = max((int(step) for step in steps if step.isdigit()), default=-1)

    def write(self, values: Mapping[str, Any]) -> None:
        """Add a step; what is measured behind the last one comes by itself, without a loss."""
        if "train/loss" in values:
            self._file.write(f"{values['step']},{values['train/loss']}\n")

    def close(self, *, exit_code: int) -> None:
        """Add how it ended."""
        self._file.write(f"end,{exit_code}\n")
        self._file.close()
