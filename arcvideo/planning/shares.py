"""How often an epoch passes over each source, and what a mixture turned out to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arcvideo.planning.plan import Plan
from arcvideo.planning.prompt_plan import PromptPlan
from arcvideo.planning.table import SourceTable, ragged, visit_tokens


def with_passes(tables: Sequence[SourceTable], *, unit: str) -> list[SourceTable]:
    """Return the tables with the passes that an epoch makes over each.

    Args:
        unit: epochs: the weights are the passes. tokens: the weights are shares of an epoch that is as long as one pass
            over everything; a source reaches at most its `repeat` passes, and the others take what it leaves.
    """
    if unit == "epochs":
        return [replace(table, passes=table.settings.weight) for table in tables]
    size = np.array([pass_tokens(table) for table in tables])
    weight = np.array([table.settings.weight for table in tables])
    limit = np.array([np.inf if table.settings.repeat is None else table.settings.repeat for table in tables])
    passes, free, left = np.zeros(len(tables)), np.ones(len(tables), dtype=bool), size.sum()
    while free.any():
        wanted = left * weight / weight[free].sum() / size
        full = free & (wanted >= limit)
        if not full.any():
            passes[free] = wanted[free]
            break
        passes[full] = limit[full]
        left -= (passes * size)[full].sum()
        free &= ~full
    return [replace(table, passes=float(number)) for table, number in zip(tables, passes, strict=True)]


def pass_tokens(table: SourceTable) -> float:
    """Return tokens that one pass over a source is expected to hold: each clip once, with the items that a visit
    draws.
    """
    if table.pass_tokens is not None:
        return table.pass_tokens
    return float(visit_tokens(table.clip_rows, table.item_rows, settings=table.settings).sum())


def realised(plan: Plan, *, steps: int) -> dict[str, dict[str, Any]]:
    """Return what the first steps hold of each source, all ranks together: families, items, tokens, items per task.

    A prefix that several families of a clip carry counts each time, as it costs each time.
    """
    rows = _nothing(plan.tables)
    step = 0
    while step < steps:
        epoch, number, _ = plan.locate(step)
        window = plan.window(epoch, number)
        packs = int(window.step_start[min(window.steps, steps - step)])
        members, families = window.pack_family[: window.pack_start[packs]], window.families
        for source, table in enumerate(plan.tables):
            own = members[families.source[members] == source]
            sizes = (families.hi - families.lo)[own]
            items = families.item[ragged(families.lo[own], sizes)]
            tasks = np.bincount(table.item_task[items], minlength=len(table.tasks))
            row = rows[table.name]
            row["families"] += len(own)
            row["items"] += int(sizes.sum())
            row["tokens"] += int(families.tokens[own].sum())
            for task, count in zip(table.tasks, tasks.tolist(), strict=True):
                row["tasks"][task] += count
        step += window.steps
    return rows


def realised_prompts(plan: PromptPlan, *, steps: int, count: int) -> dict[str, dict[str, Any]]:
    """Return the same of the first steps of `count` prompts."""
    rows = _nothing(plan.tables)
    for place in range(steps * count):
        family = plan.prompt(place)
        table = plan.tables[family.source]
        row = rows[table.name]
        row["families"] += 1
        row["items"] += 1
        row["tokens"] += family.tokens
        row["tasks"][table.tasks[table.item_task[family.items[0]]]] += 1
    return rows


def _nothing(tables: Sequence[SourceTable]) -> dict[str, dict[str, Any]]:
    return {
        table.name: {"families": 0, "items": 0, "tokens": 0, "tasks": dict.fromkeys(table.tasks, 0)} for table in tables
    }


def mixture_report(
    tables: Sequence[SourceTable], *, unit: str, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return requested beside realised, for logs and the manifest; shares are of tokens."""
    weights, tokens = sum(table.settings.weight for table in tables), sum(row["tokens"] for row in rows.values())
    report = {}
    for table in tables:
        settings, row = table.settings, rows[table.name]
        wanted: dict[str, Any] = {"unit": unit, "weight": settings.weight, "tasks": dict(settings.tasks)}
        if unit == "tokens":
            wanted["share"] = settings.weight / weights
        report[table.name] = {
            "requested": wanted,
            "realised": {
                "passes_per_epoch": table.passes,
                "share": row["tokens"] / tokens if tokens else 0.0,
                **row,
                "over_budget": table.dropped,
                "clips_with_fewer_frames": table.shortened,
                "quarantined_before": len(table.quarantined),
            },
        }
    return report


def mixture_text(report: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the report as a table."""
    lines = [f"{'source':<20}{'weight':>8}{'passes':>9}{'families':>10}{'items':>10}{'tokens':>13}{'share':>8}"]
    for name, row in report.items():
        got = row["realised"]
        lines.append(
            f"{name:<20}{row['requested']['weight']:>8g}{got['passes_per_epoch']:>9.3f}{got['families']:>10}"
            f"{got['items']:>10}{got['tokens']:>13}{got['share']:>8.1%}"
        )
    return "\n".join(lines)
