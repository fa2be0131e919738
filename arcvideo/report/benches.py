"""Measurements that lie below a run, `RUN_DIR/evaluations/NAME`, with what is published of the same benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcvideo.report.records import read_json


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """A figure of a measurement beside the published ones."""

    metric: str
    value: float
    low: float
    high: float
    chance: float
    n: int
    published: list[tuple[str, str]] = field(default_factory=list)
    """Model, and its figure as it stands in the source."""


@dataclass(frozen=True, kw_only=True)
class MarkedRow:
    """How people marked answers of a published model."""

    task: str
    model: str
    marks: str
    passed: float
    better: str


@dataclass(frozen=True, kw_only=True)
class BenchRecord:
    """One measurement."""

    name: str
    bench: str
    checkpoint: str
    asked: int
    questions: int
    rows: list[BenchRow]
    sources: list[str]
    """Where the published figures are from."""
    marked: list[MarkedRow]
    """What people marked of answers of its kind."""


def benches(run_dir: Path, *, unread: list[str]) -> list[BenchRecord]:
    """Return the measurements below a run, by name; what of them cannot be read is a line in `unread`."""
    records = []
    for path in sorted(run_dir.glob("evaluations/*/scores.json")):
        try:
            records.append(_record(path.parent, unread=unread))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            unread.append(f"evaluations/{path.parent.name}: {type(error).__name__}: {error}")
    return records


def _record(folder: Path, *, unread: list[str]) -> BenchRecord:
    scores, card = (read_json(folder / name, unread=unread) for name in ("scores.json", "card.json"))
    published = list(scores.get("published", ()))
    marked = list(scores.get("marked", ()))
    rows = [
        BenchRow(
            metric=name, value=float(row["value"]), low=float(row["low"]), high=float(row["high"]),
            chance=float(row["chance"]), n=int(row["n"]),
            published=[(_who(one), f"{float(one['value']):.1f}") for one in published if one["metric"] == name],
        )
        for name, row in scores["metrics"].items()
    ]  # fmt: skip
    return BenchRecord(
        name=str(scores["name"]), bench=str(scores["bench"]), checkpoint=str(card.get("checkpoint", "")),
        asked=int(scores["asked"]), questions=int(scores["questions"]), rows=rows,
        sources=_sources([*published, *marked]),
        marked=[
            MarkedRow(task=str(row["task"]), model=str(row["model"]), marks=_three(row["marks"]),
                      passed=float(row["passed"]), better=_three(row.get("better")))
            for row in marked
        ],
    )  # fmt: skip


def _who(row: Mapping[str, Any]) -> str:
    return f"{row['model']}{' (thinks)' if row.get('thinks') else ''}"


def _three(numbers: Iterable[int] | None) -> str:
    return " / ".join(str(int(number)) for number in numbers or ())


def _sources(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(row["source"]) for row in rows))
