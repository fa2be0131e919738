"""What the stages of a pipeline left behind, read for the page. A stage that still runs has some of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcvideo import files
from arcvideo.seals import Damaged, check_grown, read_object

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
    unread: tuple[str, ...] = ()
    """What of its files could not be used: a line each."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Resolved settings; empty for a folder without either record."""
        settings = self.manifest.get("config") or self.started.get("config") or {}
        return dict(settings) if isinstance(settings, Mapping) else {}

    def setting(self, *path: str) -> Any:
        """Return a setting by its path, None where it is not known."""
        value: Any = self.config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def series(self, key: str) -> list[tuple[int, float]]:
        """Return (step, value) of one key of metrics.jsonl; numbers that JSON cannot hold are left out."""
        return [(row["step"], float(row[key])) for row in self.steps if isinstance(row.get(key), int | float)]


def read_stage(folder: Path) -> StageRecord:
    """Return everything a stage wrote that can be read; the rest is named in `unread`."""
    unread: list[str] = []
    lost = {
        json.dumps(row, sort_keys=True): row
        for path in sorted(folder.glob("quarantine*.jsonl"))
        for row in read_lines(path, unread=unread)
    }
    manifest = read_json(folder / "manifest.json", unread=unread)
    unread += _gone(folder, manifest)
    return StageRecord(
        name=folder.name,
        manifest=manifest,
        started=read_json(folder / "started.json", unread=unread),
        evaluation=read_json(folder / "evaluation.json", unread=unread),
        steps=read_lines(folder / "metrics.jsonl", unread=unread),
        predictions=read_lines(folder / "predictions.jsonl", unread=unread),
        rollouts=read_lines(folder / "rollouts.jsonl", unread=unread),
        quarantine=list(lost.values()),
        unread=tuple(unread),
    )


def _gone(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return a line for each file of rows that lacks what stood in it when the stage was finished."""
    lines, journals = [], manifest.get("journals")
    for name, fact in (journals if isinstance(journals, Mapping) else {}).items():
        try:
            check_grown(folder, {name: fact})
        except Damaged as damage:
            lines.append(str(damage))
        except OSError:
            pass  # whoever reads its rows says so
    return lines


def stage_names(run_dir: Path, *, summary: Mapping[str, Any], unread: list[str]) -> list[str]:
    """Return sub-folders that hold a stage: in the summary's order, then by the time of their last step.

    Args:
        unread: gets a line for each sub-folder that cannot be looked into.

    Raises:
        OSError: the folder itself cannot be looked into, or is not there.
    """
    named = summary.get("stages", {})
    listed = [name for name in named if (run_dir / name).is_dir()] if isinstance(named, Mapping) else []
    others: dict[str, float] = {}
    for name in sorted(os.listdir(run_dir)):
        try:
            others[name] = (run_dir / name / "metrics.jsonl").stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unread.append(f"{name}: {os.strerror(error.errno or 0)}")
    return listed + [name for name in sorted(others, key=lambda name: others[name]) if name not in listed]


def read_json(path: Path, *, unread: list[str]) -> Row:
    """Return the object in a file; empty, with a line in `unread`, when it cannot be read, and when there is none."""
    try:
        return read_object(path) if path.exists() else {}
    except (Damaged, OSError) as error:
        unread.append(f"{path.name}: {str(error).removeprefix(f'{path}: ').partition('; ')[0]}")
        return {}


def read_lines(path: Path, *, unread: list[str]) -> list[Row]:
    """Return the objects of a file of JSON lines, without the lines that are none: they are counted in `unread`."""
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        unread.append(f"{path.name}: {error}")
        return []
    rows, odd = [], 0
    for line in data.split(b"\n"):
        try:
            parsed = files.parsed_lines(line + b"\n", name=path.name)
        except ValueError:
            parsed = [None]
        good = [row for row in parsed if isinstance(row, dict)]
        rows += good
        odd += len(parsed) - len(good)
    if odd:
        unread.append(f"{path.name}: {odd} of its lines")
    return rows
