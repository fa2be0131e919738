"""One self-contained HTML page about the stages of a pipeline: curves, the table of what each stage moved, samples.

Everything that was written by a model or a data set is escaped; the page has no script and loads nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from arcvideo.report.curves import curve

CURVES = {
    "train/loss": "loss",
    "train/reward": "reward",
    "train/kl": "KL to the parent",
    "train/completions/mean_length": "tokens of a completion",
}
"""Key in metrics.jsonl -> title; a stage shows those it has."""
PAGE = "report.html"
SAMPLES = 4
"""Predictions shown per metric, rollouts shown per stage."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff; max-width: 1180px; margin: 32px auto;
  padding: 0 20px }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 18px; margin: 36px 0 10px } h3 { font-size: 15px }
p, .quiet { color: #5b6675 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-bottom: 1px solid #e3e7ec }
th { font-weight: 600; white-space: nowrap } td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
td small { color: #5b6675; display: block }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: 14px }
svg { width: 100%; height: auto } .grid { stroke: #e3e7ec } .line { fill: none; stroke: #1f6feb; stroke-width: 1.6 }
.dot { fill: #1f6feb }
.tick { font-size: 10px; fill: #5b6675 } .name { font-size: 12px; font-weight: 600; fill: #1d2430 }
.good { color: #13693a } .bad { color: #a4262c }
pre { white-space: pre-wrap; margin: 0; font: 13px/1.45 ui-monospace, monospace }
details { margin: 8px 0 } summary { cursor: pointer }
"""


def write_page(run_dir: Path, *, stages: Sequence[str] | None = None) -> Path:
    """Write `run_dir`/report.html and return its path.

    Args:
        run_dir: folder of a pipeline: one sub-folder a stage, and summary.json once it is finished.
        stages: names of the sub-folders in order; None takes the order of summary.json, then the time they began.

    Raises:
        ValueError: the folder has nothing to report.
    """
    summary = _read_json(run_dir / "summary.json")
    names = list(stages) if stages is not None else _stages(run_dir, summary=summary)
    if not names:
        raise ValueError(f"{run_dir} has neither summary.json nor a stage with metrics.jsonl; train a stage first")
    parts = [
        f"<h1>{escape(run_dir.name)}</h1>",
        _verdict(summary),
        _table(summary, stages=names),
        *[_stage(run_dir / name) for name in names],
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run_dir.name)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    path = run_dir / PAGE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _stages(run_dir: Path, *, summary: Mapping[str, Any]) -> list[str]:
    listed = list(summary.get("stages", {}))
    found = sorted(run_dir.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    return listed + [path.parent.name for path in found if path.parent.name not in listed]


def _verdict(summary: Mapping[str, Any]) -> str:
    if not summary:
        return "<p>Not finished: summary.json is not there yet.</p>"
    total = sum(summary.get("seconds", {}).values())
    word, kind = ("All targets met", "good") if summary.get("passed") else ("A target was missed", "bad")
    return f'<p><b class="{kind}">{word}</b> in {total / 60:.1f} minutes.</p>'


def _table(summary: Mapping[str, Any], *, stages: Sequence[str]) -> str:
    """Metrics down, stages across; every number with its interval, chance level and items."""
    measured = summary.get("stages", {})
    shown = [name for name in stages if name in measured]
    metrics = list(dict.fromkeys(metric for name in shown for metric in measured[name]))
    if not metrics:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in shown)
    rows = "".join(
        f"<tr><th>{escape(metric)}</th>{''.join(_cell(measured[name].get(metric)) for name in shown)}</tr>"
        for metric in metrics
    )
    seconds = summary.get("seconds", {})
    last = "".join(f'<td class="number">{_seconds(seconds.get(name))}</td>' for name in shown)
    note = '<p class="quiet">Value, 95 % interval, chance level, number of items; held-out clips.</p>'
    return (
        f'<h2>What each stage moved</h2>{note}<div class="scroll"><table><tr><th></th>{head}</tr>{rows}'
        f"<tr><th>time</th>{last}</tr></table></div>"
    )


def _cell(measured: Mapping[str, float] | None) -> str:
    if measured is None:
        return "<td></td>"
    detail = f"[{measured['low']:.3f}, {measured['high']:.3f}]<br>chance {measured['chance']:.3f}, n {measured['n']}"
    return f'<td class="number">{measured["value"]:.3f}<small>{detail}</small></td>'


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} s"


def _stage(folder: Path) -> str:
    steps = _read_lines(folder / "metrics.jsonl")
    curves = [
        curve([(row["step"], row[key]) for row in steps if isinstance(row.get(key), int | float)], title=title)
        for key, title in CURVES.items()
    ]
    samples = _predictions(_read_lines(folder / "predictions.jsonl")) + _rollouts(
        _read_lines(folder / "rollouts.jsonl")
    )
    drawn = "".join(curves) or '<p class="quiet">No steps are logged.</p>'
    return f'<h2>{escape(folder.name)}</h2><div class="curves">{drawn}</div>{samples}'


def _predictions(rows: Sequence[Mapping[str, Any]]) -> str:
    chosen: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if not row["metric"].endswith("_constant") and len(chosen.setdefault(row["metric"], [])) < SAMPLES:
            chosen[row["metric"]].append(row)
    lines = [
        [metric, row["question"], row["truth"], row["prediction"], f"{row['score'] / row['weight']:.2f}"]
        for metric, kept in chosen.items()
        for row in kept
    ]
    return _details("Predictions", head=["metric", "question", "truth", "prediction", "score"], rows=lines)


def _rollouts(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first and the last completions of a GRPO stage."""
    kept = list(rows) if len(rows) <= 2 * SAMPLES else [*rows[:SAMPLES], *rows[-SAMPLES:]]
    lines = [
        [row["step"], row["question"], row["truth"], row["completion"], row["rewards"], row["advantage"]]
        for row in kept
    ]
    return _details("Rollouts", head=["step", "question", "truth", "completion", "rewards", "advantage"], rows=lines)


def _details(title: str, *, head: Iterable[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td><pre>{escape(_text(cell))}</pre></td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<details><summary>{escape(title)}</summary>"
        f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div></details>'
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSONL file; a last line cut short by a kill is left out."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
