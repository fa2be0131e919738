"""What a finished stage says on the terminal: its metrics and where things are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arcvideo.seals import read_object


def closing_text(folder: Path, *, steps: int, seconds: float, identity: str) -> str:
    """Return the lines that end a stage's run: its metrics with 95 % intervals, and the paths of what it leaves."""
    file = folder / "evaluation.json"
    measured: dict[str, Any] = read_object(file) if file.exists() else {}
    lines = [f"{folder}: finished, {steps} steps in {seconds / 60:.1f} minutes ({identity[:8]})"]
    lines += [
        f"  {name:<24}{_value(row)}" for name, row in measured.items() if isinstance(row, dict) and "value" in row
    ]
    if len(lines) == 1:
        lines.append("  nothing was measured: evaluation.shards names held-out items")
    else:
        lines.append(f"  {'answers':<24}{folder / 'predictions.jsonl'}")
    lines.append(f"  {'export':<24}{folder / 'export'}")
    lines.append(f"  {'report':<24}arcvideo report {folder.parent}")
    return "\n".join(lines)


def _value(row: dict[str, Any]) -> str:
    """Return a metric with what is known about it: `0.73 [0.70, 0.76]  n 300, chance 0.25`."""
    text = f"{row['value']:.3f}"
    if "low" in row and "high" in row:
        text += f" [{row['low']:.3f}, {row['high']:.3f}]"
    facts = [f"n {row['n']:.0f}"] if "n" in row else []
    facts += [f"chance {row['chance']:.2f}"] if row.get("chance") is not None else []
    return text + (f"  {', '.join(facts)}" if facts else "")
