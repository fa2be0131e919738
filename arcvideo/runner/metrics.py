"""Where numbers go: metrics.jsonl is the truth, Weights & Biases an optional mirror that never stops a run."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arcvideo.runner.settings import LoggerSettings


class MetricsFile:
    """metrics.jsonl: one object a step, in order, each step once even across restarts."""

    def __init__(self, path: Path, *, keep_below: int) -> None:
        """Open for appending.

        Args:
            path: the file; its folder exists.
            keep_below: lines of this step and later are dropped: the run is about to do those steps again.
        """
        self.path = path
        kept = [line for line in _lines(path) if line["step"] < keep_below]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(_dump(line) for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a")

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one object; it must have `step`."""
        self._file.write(_dump(values))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _dump(values: Mapping[str, Any]) -> str:
    # JSON has no nan and inf; a string keeps the line readable by any parser.
    plain = {
        key: str(value) if isinstance(value, float) and not _finite(value) else value for key, value in values.items()
    }
    return json.dumps(plain) + "\n"


def _finite(value: float) -> bool:
    return value - value == 0.0


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            # Only the last line can be cut short, by a kill while it was written.
            break
    return lines


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl, in order of steps; an absent file has none."""
    return _lines(path)


class WandbMirror:
    """Sends the same numbers to W&B. Any failure is said once on stderr and switches the mirror off."""

    def __init__(
        self, settings: LoggerSettings, *, folder: Path, name: str, config: Mapping[str, Any], run_id: str | None
    ) -> None:
        """Start or continue the W&B run.

        Args:
            settings: mode, project and so on.
            folder: where W&B keeps its files.
            name: name of the run.
            config: resolved settings, shown by W&B.
            run_id: id from a checkpoint, None for a new run.
        """
        self.run_id = run_id
        self._run: Any = None
        if settings.wandb == "disabled":
            return
        try:
            import wandb

            self.run_id = run_id or uuid.uuid4().hex[:8]
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                tags=list(settings.tags) or None,
                mode=settings.wandb,  # type: ignore[arg-type]
                dir=str(folder),
                name=name,
                id=self.run_id,
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off", init_timeout=30),
            )
        except Exception as error:
            self._give_up(error)

    def write(self, values: Mapping[str, Any]) -> None:
        """Mirror one object of metrics.jsonl."""
        if self._run is None:
            return
        try:
            numbers = {key: value for key, value in values.items() if key != "step" and isinstance(value, int | float)}
            self._run.log(numbers, step=int(values["step"]))
        except Exception as error:
            self._give_up(error)

    def close(self, *, exit_code: int = 0) -> None:
        """Finish the W&B run."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            self._give_up(error)
        self._run = None

    def _give_up(self, error: Exception) -> None:
        print(f"W&B is off for this run, training goes on: {type(error).__name__}: {error}", file=sys.stderr)
        self._run = None


class Sums:
    """Summed metrics of one step on one rank: the loss, and the objective's (sum, count) pairs."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}

    def add(self, name: str, total: Any, count: Any) -> None:
        """Add a sum and its count; tensors are not read before `pairs`."""
        pair = self._values.setdefault(name, [0.0, 0.0])
        pair[0] = pair[0] + total
        pair[1] = pair[1] + count

    def pairs(self) -> dict[str, list[float]]:
        """Name -> [sum, count] as floats."""
        return {name: [float(total), float(count)] for name, (total, count) in self._values.items()}


def merge(parts: list[dict[str, list[float]]]) -> dict[str, float]:
    """Sum over count for every name, over the ranks' pairs; names nobody counted are left out."""
    totals: dict[str, list[float]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            pair = totals.setdefault(name, [0.0, 0.0])
            pair[0] += total
            pair[1] += count
    return {name: total / count for name, (total, count) in sorted(totals.items()) if count}
