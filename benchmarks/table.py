"""What all benchmarks share: measuring sides in turn, a table for a person, results/<name>.json for the record.

A row says how many times better than the baseline we are (`ratio`, larger is better), the least it should be
(`target`), what would be possible at best (`bound`), and whether both sides computed the same (`equal`).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "deepspeed", "transformers", "trl", "av", "webdataset")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure."""

    metric: str
    """What, with its unit."""
    ours: float
    """Our figure."""
    baseline: float | None
    """The other side's figure, of the same run; None where there is no other side."""
    ratio: float
    """How many times better than the baseline; larger is better, also where a smaller figure is."""
    target: float
    """Least ratio that is acceptable; below it the benchmark fails."""
    bound: float | None = None
    """Ratio that the argument behind the figure allows at best, if known."""
    equal: bool | None = None
    """Whether both sides were checked to compute the same; None where there is nothing to compare."""
    spread: tuple[float, float] | None = None
    """Least and largest ratio of the run's rounds; None where it was measured once or computed."""

    @property
    def passed(self) -> bool:
        """Whether the figure counts and is good enough."""
        return self.equal is not False and self.ratio >= self.target


def interleaved(
    sides: Mapping[str, Callable[[], float]], *, rounds: int = 5, warm_up: int = 1
) -> dict[str, list[float]]:
    """Figures of each side, measured A B A B so that a busy machine hurts all alike.

    Args:
        sides: name -> runs once and returns its figure.
        rounds: measurements of each side.
        warm_up: rounds thrown away first.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, measure in sides.items():
            figure = measure()
            if number >= warm_up:
                found[name].append(figure)
    return found


def median_ratio(better: Sequence[float], worse: Sequence[float]) -> float:
    """Median over the rounds of worse / better, for figures where less is better (seconds)."""
    return statistics.median(there / here for here, there in zip(better, worse, strict=True))


def ratio_spread(better: Sequence[float], worse: Sequence[float]) -> tuple[float, float]:
    """Return the least and the largest ratio over the rounds of `median_ratio`."""
    ratios = [there / here for here, there in zip(better, worse, strict=True)]
    return min(ratios), max(ratios)


def ratio_text(ratio: float, spread: Sequence[float] | None) -> str:
    """Return a ratio as it is printed, the run's spread with it.

    A difference smaller than its noise is said to be so: rounds on both sides of 1 show no difference at all.
    """
    if spread is None:
        return _short(ratio)
    low, high = spread
    if low <= 1 <= high:
        return f"below noise ({_short(low)} to {_short(high)})"
    return f"{_short(ratio)} ({_short(low)} to {_short(high)})"


def report(name: str, rows: Sequence[Row], *, notes: Sequence[str] = ()) -> int:
    """Print the table, write results/<name>.json; returns the exit status, 1 when a row missed its target.

    Args:
        name: of the benchmark.
        rows: figures.
        notes: sentences about how it was measured.
    """
    print(table_text(rows))
    for note in notes:
        print(f"- {note}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "machine": machine(),
        "versions": versions(),
        "notes": list(notes),
        "rows": [asdict(row) | {"passed": row.passed} for row in rows],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(row.passed for row in rows) else 1


def table_text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    head = ("metric", "ours", "baseline", "ratio", "target", "bound", "equal", "")
    body = [
        (
            row.metric,
            _short(row.ours),
            _short(row.baseline),
            ratio_text(row.ratio, row.spread),
            _short(row.target),
            _short(row.bound),
            {True: "yes", False: "NO", None: "-"}[row.equal],
            "" if row.passed else "MISSED",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *body)
    )


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = found[0] if found else name
    return {"cpu": name, "cores": os.cpu_count() or 1, "system": platform.system(), "python": platform.python_version()}


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _short(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.4g}"
