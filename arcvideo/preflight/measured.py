"""Predicted beside measured, for stages that have finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcvideo.composing.config import RunConfig
from arcvideo.files import read_lines
from arcvideo.lineage.manifest import Manifest, finished
from arcvideo.preflight.estimate import Estimate
from arcvideo.preflight.machine import GIB, Machine


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One quantity of a finished stage."""

    stage: str
    what: str
    unit: str
    predicted: float
    measured: float


def measured(config: RunConfig, *, estimate: Estimate, machine: Machine) -> list[Measured]:
    """Return what became of the estimate; empty for a stage that has not finished, or that ran other steps than are
    asked for.

    Memory is compared where the stage ran on a device: on a CPU the whole process counts.
    """
    manifest = finished(config.stage_dir)
    # What the finished stage measured stands in a line of its own, behind the steps.
    rows = [row for row in _metrics(config.stage_dir / "metrics.jsonl") if "time/step" in row]
    if manifest is None or manifest.steps != config.runner.steps or len(rows) != manifest.steps:
        return []
    seconds = sum(row["time/step"] for row in rows)
    pairs = [("steps", "h", estimate.seconds / 3600, seconds / 3600)]
    if not config.objective.sampled:
        tokens = sum(row["train/tokens"] for row in rows)
        pairs.append(("tokens", "", estimate.epoch.tokens * estimate.steps / estimate.epoch.steps, tokens))
    used = _largest(rows, "memory/gib")
    if used is not None and machine.device != "cpu":
        pairs.append(("GPU", "GiB", estimate.gpu.total / GIB, used))
    disk = _size(config.stage_dir / "checkpoints") + _size(config.stage_dir / "export")
    if _kept(config, manifest=manifest):
        pairs.append(("disk", "GiB", estimate.disk / GIB, disk / GIB))
    return [Measured(stage=estimate.name, what=w, unit=u, predicted=p, measured=m) for w, u, p, m in pairs]


def error_table(rows: list[Measured]) -> str:
    """Return predicted over measured, a line each."""
    lines = [f"{'finished stage':<16}{'':<8}{'predicted':>12}{'measured':>12}{'ratio':>8}"]
    for row in rows:
        ratio = row.predicted / row.measured if row.measured else float("nan")
        name = f"{row.what} {row.unit}".strip()
        lines.append(f"{row.stage:<16}{name:<8}{row.predicted:>12.4g}{row.measured:>12.4g}{ratio:>8.2f}")
    return "\n".join(lines)


def _metrics(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if path.exists() else []


def _largest(rows: list[dict[str, Any]], key: str) -> float | None:
    return max((row[key] for row in rows if key in row), default=None)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _kept(config: RunConfig, *, manifest: Manifest) -> bool:
    """Return whether as many checkpoints as are planned for came together."""
    every = config.runner.save_every
    return bool(every) and manifest.steps // every >= config.runner.keep_last
