"""What each stage of a pipeline moved: summary.json, the printed table and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from arcvideo.report.page import write_page
from arcvideo.report.records import read_lines
from arcvideo.report.sets import Cells, metric_rows, question_sets, told_sets
from arcvideo.seals import read_object, write_sealed

SUMMARY = "summary.json"


def write_summary(
    run_dir: Path,
    *,
    stages: Sequence[str],
    verdicts: Sequence[Any],
    prepared: Mapping[str, float],
    differences: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Collect evaluations, seconds and verdicts of the finished stages; writes summary.json and report.html.

    Args:
        stages: in the order of the recipe.
        verdicts: dataclasses with `target`, `met` and `reason`.
        prepared: seconds of the steps before the stages.
        differences: `evaluation.targets.compare`.
    """
    manifests = {stage: read_object(run_dir / stage / "manifest.json") for stage in stages}
    summary = {
        "stages": evaluations(run_dir, stages=stages),
        "sets": {
            stage: question_sets(read_lines(run_dir / stage / "predictions.jsonl", unread=[])) for stage in stages
        },
        "seconds": {**prepared, **{stage: round(manifest["seconds"], 1) for stage, manifest in manifests.items()}},
        "targets": [{**_set(asdict(v.target)), "met": v.met, "reason": v.reason} for v in verdicts],
        "differences": list(differences),
        "passed": all(v.met for v in verdicts),
    }
    write_sealed(run_dir / SUMMARY, json.dumps(summary, indent=1) + "\n")
    write_page(run_dir, stages=list(stages))
    return summary


def evaluations(run_dir: Path, *, stages: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """stage -> metric -> {"value", "low", "high", "chance", "n"}; stages that were not evaluated are empty."""
    paths = {stage: run_dir / stage / "evaluation.json" for stage in stages}
    return {stage: read_object(path) if path.exists() else {} for stage, path in paths.items()}


def print_summary(summary: Mapping[str, Any], *, page: Path) -> None:
    """The table of metrics by stage, the seconds, and each target with its verdict."""
    console = Console()
    stages, sets = summary["stages"], summary.get("sets", {})
    table = _table(stages, sets=sets)
    if table.row_count and console.measure(table, options=console.options.update(width=10_000)).maximum > console.width:
        table = _long_table(stages, sets=sets)
    console.print(table if table.row_count else "no stage was evaluated: evaluation.shards names held-out items")
    if unequal := told_sets(metric_rows(stages, sets=sets)):
        console.print(unequal)
    seconds = summary["seconds"]
    console.print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    console.print(f"in all {sum(seconds.values()) / 60:.1f} minutes; page: {page}")
    for row in summary.get("differences", []):
        interval = f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        console.print(f"{row['metric']}: {row['stage']} minus {row['minus']} {interval}", highlight=False, markup=False)
    if not summary["targets"] and table.row_count:
        console.print("the recipe sets no targets")
    for target in summary["targets"]:
        mark = "[green]met   [/]" if target["met"] else "[red]MISSED[/]"
        console.print(
            f"{mark} {target['stage']}: {escape(target['metric'])} {escape(target['reason'])}", highlight=False
        )


def _table(stages: Mapping[str, Cells], *, sets: Mapping[str, Mapping[str, str]]) -> Table:
    """Return a row a metric, a column a stage; nothing in it is cut or broken."""
    table = Table(title="held-out items after each stage (95 % interval)")
    table.add_column("metric", no_wrap=True, overflow="ignore")
    table.add_column("chance", justify="right", no_wrap=True)
    for stage in stages:
        table.add_column(stage, justify="right", no_wrap=True, overflow="ignore")
    for row in metric_rows(stages, sets=sets):
        chance = next(iter(row.cells.values()))["chance"]
        table.add_row(escape(row.title), f"{chance:.2f}", *(_cell(row.cells.get(stage)) for stage in stages))
    return table


def _long_table(stages: Mapping[str, Cells], *, sets: Mapping[str, Mapping[str, str]]) -> Table:
    """Return a row for each metric of each stage, for narrow terminals and logs."""
    table = Table(title="held-out items after each stage (95 % interval)")
    for name in ("metric", "stage", "value", "chance"):
        table.add_column(name, no_wrap=True, overflow="ignore")
    for row in metric_rows(stages, sets=sets):
        for number, (stage, cell) in enumerate(row.cells.items()):
            chance = f"{cell['chance']:.2f}"
            table.add_row("" if number else escape(row.title), stage, _cell(cell), "" if number else chance)
    return table


def _cell(metric: Mapping[str, float] | None) -> str:
    return f"{metric['value']:.2f} [{metric['low']:.2f}, {metric['high']:.2f}]" if metric else ""


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was left open."""
    return {key: value for key, value in values.items() if value not in (None, False)}
