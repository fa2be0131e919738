"""The jobs of a sweep side by side: sweep.json, a printed table, and a page with one plot per swept setting."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from arcvideo.files import Fields
from arcvideo.report.curves import scatter
from arcvideo.report.page import rendered, save
from arcvideo.seals import Damaged, read_object, write_sealed


def write_sweep(folder: Path) -> dict[str, Any]:
    """Collect the jobs in `folder`/<number>/job.json; writes sweep.json and sweep.html.

    Returns:
        {"metric": name, "keys": settings that differ between jobs, "jobs": rows, best first}.

    Raises:
        ValueError: no job has finished there.
    """
    jobs = read_jobs(folder, unread=[])
    if not jobs:
        raise ValueError(f"{folder} has no finished job (*/job.json)")
    keys = list(dict.fromkeys(key for job in jobs for key in job["overrides"]))
    swept = [key for key in keys if len({job["overrides"].get(key) for job in jobs}) > 1]
    lower_is_better = jobs[0].get("direction") == "minimize"
    measured = [job for job in jobs if job["value"] is not None]
    ranked = sorted(measured, key=lambda job: job["value"], reverse=not lower_is_better)
    ranked += [job for job in jobs if job["value"] is None]
    table = {"metric": jobs[0]["metric"], "keys": swept, "jobs": ranked}
    write_sealed(folder / "sweep.json", json.dumps(table, indent=1) + "\n")
    save(folder / "sweep.html", _page(table, name=folder.name))
    return table


def read_jobs(folder: Path, *, unread: list[str]) -> list[dict[str, Any]]:
    """Return what the jobs of a sweep came to; of a file that cannot be read, a line in `unread` says why."""
    jobs = []
    for path in sorted(folder.glob("*/job.json")):
        try:
            job = read_object(path)
        except (Damaged, OSError) as error:
            unread.append(str(error))
            continue
        wrong = [name for name, kind in _JOB.items() if not isinstance(job.get(name), kind)]
        if wrong:
            unread.append(f"{path}: {wrong[0]!r} is missing or of another kind; delete it, run the job again")
        else:
            jobs.append(job)
    return jobs


_JOB: Fields = {
    "folder": str, "overrides": dict, "metric": str, "seconds": (int, float),
    "value": (int, float, type(None)),
}  # fmt: skip


def print_sweep(table: Mapping[str, Any], *, page: Path) -> None:
    """The table, best job first."""
    shown = Table(title=f"{len(table['jobs'])} jobs by {table['metric']}")
    for name in (*table["keys"], table["metric"], "minutes", "folder"):
        shown.add_column(name, overflow="fold")
    for job in table["jobs"]:
        shown.add_row(*_cells(job, keys=table["keys"]))
    console = Console()
    console.print(shown)
    console.print(f"page: {page}")


def _cells(job: Mapping[str, Any], *, keys: Sequence[str]) -> list[str]:
    value = "" if job["value"] is None else f"{job['value']:.4f}"
    swept = [str(job["overrides"].get(key, "")) for key in keys]
    return [*swept, value, f"{job['seconds'] / 60:.1f}", job["folder"]]


def _page(table: Mapping[str, Any], *, name: str) -> str:
    plots = [_plot(table, key=key) for key in table["keys"]]
    return rendered(
        "sweep.html",
        name=name,
        metric=table["metric"],
        keys=table["keys"],
        plots=[Markup(svg) for svg in plots if svg],
        rows=[_cells(job, keys=table["keys"]) for job in table["jobs"]],
    )


def _plot(table: Mapping[str, Any], *, key: str) -> str:
    """Return the metric over one setting: by value where all values are numbers, else by order of appearance."""
    jobs = [job for job in table["jobs"] if job["value"] is not None]
    values = [str(job["overrides"].get(key, "")) for job in jobs]
    try:
        places, labels = [float(value) for value in values], None
    except ValueError:
        labels = list(dict.fromkeys(values))
        places = [float(labels.index(value)) for value in values]
    points = [(place, float(job["value"])) for place, job in zip(places, jobs, strict=True)]
    return scatter(points, title=key, labels=labels)
