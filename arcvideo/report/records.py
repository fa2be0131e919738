"""What the stages of a pipeline left behind, read for the page. A stage that still runs has some of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcvideo import files

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage's files."""

    name: str
    """Of its folder."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """Empty until the stage is finished."""
    started: Mapping[str, Any] = field(default_factory=dict)
    """What it set out to do."""
    evaluation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metric -> value, low, high, chance, n."""
    steps: Sequence[Row] = ()
    """Lines of metrics.jsonl."""
    predictions: Sequence[Row] = ()
    """Lines of predictions.jsonl."""
    rollouts: Sequence[Row] = ()
    """Lines of rollouts.jsonl."""
    quarantine: Sequence[Row] = ()
    """Lines of quarantine*.jsonl, held-out clips and other ranks included, each once."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Resolved settings; empty for a folder without either record."""
        return dict(self.manifest.get("config") or self.started.get("config") or {})

    def setting(self, *path: str) -> Any:
        """A setting by its path, None where it is not known."""
        found: Any = self.config
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of one key of metrics.jsonl; numbers that JSON cannot hold are left out."""
        return [(row["step"], float(row[key])) for row in self.steps if isinstance(row.get(key), int | float)]


def read_stage(folder: Path) -> StageRecord:
    """Everything a stage wrote."""
    lost = {
        json.dumps(row, sort_keys=True): row
        for path in sorted(folder.glob("quarantine*.jsonl"))
        for row in read_lines(path)
    }
    return StageRecord(
        name=folder.name,
        manifest=read_json(folder / "manifest.json"),
        started=read_json(folder / "started.json"),
        evaluation=read_json(folder / "evaluation.json"),
        steps=read_lines(folder / "metrics.jsonl"),
        predictions=read_lines(folder / "predictions.jsonl"),
        rollouts=read_lines(folder / "rollouts.jsonl"),
        quarantine=list(lost.values()),
    )


def stage_names(run_dir: Path, *, summary: Mapping[str, Any]) -> list[str]:
    """Sub-folders that hold a stage: in the summary's order, then by the time of their last step."""
    listed = [name for name in summary.get("stages", {}) if (run_dir / name).is_dir()]
    found = sorted(run_dir.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    return listed + [path.parent.name for path in found if path.parent.name not in listed]


def read_json(path: Path) -> Row:
    """The object in a file; empty when there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_lines(path: Path) -> list[Row]:
    """Return the objects of a file of JSON lines; none when there is no file."""
    return files.read_lines(path) if path.exists() else []
