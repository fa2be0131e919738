"""`python -m benchmarks.demo_page` writes the demo's figures into README and docs from benchmarks/results/demo/*.json.

They stand between `<!-- demo NAME -->` and `<!-- end -->`; nothing there is typed by hand.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcvideo.evaluation.targets import ERRORS
from benchmarks.demo import DEMO, SHARED

ROOT = Path(__file__).resolve().parents[1]
Record = Mapping[str, Any]
STAGES = ("audio_warmup", "pretrain", "sft", "cold_start", "grpo", "final_sft")
"""Of the demo; what else a run has are controls."""
NAMES = {
    "transcript_token_error": "transcript token error (less is better)",
    "speech_qa": "speech questions",
    "speech_qa_audio_zeroed": "... with the sound zeroed",
    "mcq_accuracy": "multiple choice (four options)",
    "grounding_miou": "grounding, mIoU",
    "grounding_miou_constant": "... of the best constant answer",
    "format_valid": "answers in the think/answer form",
}
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)
"""97.5 % quantile of Student's t for 1, 2, ... degrees of freedom."""
BLOCK = re.compile(r"(<!-- demo (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def records(folder: Path = DEMO) -> list[Record]:
    """The recorded runs, in the order of their names.

    Raises:
        ValueError: there are none.
    """
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise ValueError(f"{folder} has no recorded run: python -m benchmarks.demo")
    return found


def pages() -> list[Path]:
    """README and the pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled_in(text: str, *, runs: Sequence[Record]) -> str:
    """The page with its blocks written anew.

    Raises:
        ValueError: a block of an unknown name.
    """

    def block(found: re.Match[str]) -> str:
        name = found[2]
        if name in BLOCKS:
            return found[1] + BLOCKS[name](runs) + found[3]
        if name in STAGES:
            return found[1] + stage_table(runs, stage=name) + found[3]
        raise ValueError(f"<!-- demo {name} --> is unknown; use {', '.join([*BLOCKS, *STAGES])}")

    return BLOCK.sub(block, text)


def about(runs: Sequence[Record]) -> str:
    """How many runs there are, and on what."""
    whole = [run for run in runs if run["shares"] is None]
    kernels = ", ".join(f"{sum(run['capability'] == one for run in runs)} {one}" for one in _all(runs, "capability"))
    cpus = "; ".join(sorted({run["machine"]["cpu"] for run in runs}))
    lines = [
        f"{_runs(len(runs))}: seed {', '.join(_all(runs, 'seed'))}; kernels {kernels}; threads "
        f"{', '.join(_all(runs, 'threads'))}; {cpus}."
    ]
    if len(whole) < len(runs):
        lines.append(
            f"{len(whole)} of them made clips, base weights and all six stages with their seed; the others took clips, "
            "base weights and stages 1 to 3 from one of those."
        )
    passed = [run for run in runs if all(row["met"] for row in run["summary"]["targets"])]
    lines.append(f"All targets of the demo were met in {len(passed)} of {len(runs)}.{_missed(runs)}")
    lines.append("Cells are the median, and the range over the runs.")
    return "\n".join(lines) + "\n"


def _missed(runs: Sequence[Record]) -> str:
    """Return which targets were missed in which runs; empty when none was."""
    told = [
        f"`{row['stage']}` {NAMES[row['metric']]} {row['reason']} (seed {run['seed']})"
        for run in runs
        for row in run["summary"]["targets"]
        if not row["met"]
    ]
    return f" Missed: {'; '.join(told)}." if told else ""


def _runs(count: int) -> str:
    return "1 recorded run" if count == 1 else f"{count} recorded runs"


def _all(runs: Sequence[Record], key: str) -> list[str]:
    return [str(value) for value in sorted({run[key] for run in runs})]


def table(runs: Sequence[Record]) -> str:
    """Metrics by stage."""
    metrics = [name for name in NAMES if any(name in _stage(run, stage) for run in runs for stage in STAGES)]
    lines = [f"| | chance | {' | '.join(f'`{stage}`' for stage in STAGES)} |", "|---" * (len(STAGES) + 2) + "|"]
    for metric in metrics:
        chances = [found[metric]["chance"] for run in runs for found in map(_of(run), STAGES) if metric in found]
        cells = [_spread(_values(runs, stage=stage, metric=metric)) for stage in STAGES]
        lines.append(f"| {NAMES[metric]} | {statistics.median(chances):.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def stage_table(runs: Sequence[Record], *, stage: str) -> str:
    """The metrics of one stage."""
    trained = sum(run["shares"] is None or stage not in SHARED for run in runs)
    lines = [
        f"Demo, {trained} recorded run{'s' if trained > 1 else ''}:",
        "",
        "| metric | chance | median (range) |",
        "|---|---|---|",
    ]
    for metric in NAMES:
        values = _values(runs, stage=stage, metric=metric)
        if values:
            chance = statistics.median(_stage(run, stage)[metric]["chance"] for run in runs)
            lines.append(f"| `{metric}` | {chance:.2f} | {_spread(values)} |")
    return "\n".join(lines) + "\n"


def differences(runs: Sequence[Record]) -> str:
    """Paired differences, their mean over the runs, and in how many runs their own interval leaves zero."""
    head = ("difference", "metric", "median (range)", "mean, 95 % over runs", "runs above 0", "runs below 0")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for same in zip(*(run["summary"]["differences"] for run in runs), strict=True):
        one = same[0]
        assert len({(row["metric"], row["stage"], row["minus"]) for row in same}) == 1, "runs of different recipes"
        counts = (sum(row["low"] > 0 for row in same), sum(row["high"] < 0 for row in same))
        above, below = (f"{count} of {len(same)}" for count in counts)
        cells = [_spread([row["mean"] for row in same], sign=True), _mean([row["mean"] for row in same]), above, below]
        lines.append(f"| `{one['stage']}` - `{one['minus']}` | {NAMES[one['metric']]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def targets(runs: Sequence[Record]) -> str:
    """How many runs met each target, and how near to its bound the nearest came."""
    lines = ["| stage | metric | target | met | nearest run |", "|---|---|---|---|---|"]
    for rows in zip(*(run["summary"]["targets"] for run in runs), strict=True):
        taken = rows[0]["stage"] in SHARED
        same = [row for row, run in zip(rows, runs, strict=True) if run["shares"] is None or not taken]
        wanted = {key: value for key, value in same[0].items() if key not in ("stage", "metric", "met", "reason")}
        text = ", ".join(name if value is True else f"{name} {value}" for name, value in wanted.items())
        met = sum(row["met"] for row in same)
        cells = [f"`{same[0]['stage']}`", NAMES[same[0]["metric"]], text, f"{met} of {len(same)}", _nearest(same)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _nearest(same: Sequence[Mapping[str, Any]]) -> str:
    """Of the runs' verdicts on one target the figure nearest to its bound: a value, or the worse end of an interval."""
    one = same[0]
    if "within" in one:
        ends = [re.findall(r"[+-]\d\.\d+", row["reason"].partition("[")[2])[:2] for row in same]
        losses = [float(high) if one["metric"] in ERRORS else -float(low) for low, high in ends]
        return f"{max(losses):+.3f} worse"
    values = [float(row["reason"].split()[0]) for row in same if "at_least" in one or "at_most" in one]
    return f"{(min if 'at_least' in one else max)(values):.3f}" if values else ""


def seconds(runs: Sequence[Record]) -> str:
    """Where the time goes."""
    parts = [run["summary"]["seconds"] for run in runs if run["shares"] is None]
    names = [name for name in ("data", "index", "base", *STAGES) if all(name in part for part in parts)]
    told = ", ".join(f"{name} {statistics.median(part[name] for part in parts):.0f}" for name in names)
    whole = [sum(part[name] for name in names) / 60 for part in parts]
    made = "" if "data" in names else " Making the clips is not among them: they were there already."
    return (
        f"Seconds of the whole runs (median; one thread, beside much other work on the machine): {told}; "
        f"{_spread(whole)} minutes in all.{made}\n"
    )


BLOCKS: dict[str, Callable[[Sequence[Record]], str]] = {
    "about": about,
    "table": table,
    "differences": differences,
    "targets": targets,
    "seconds": seconds,
}
"""Name of a block -> what writes it; besides these a stage's name gives `stage_table`."""


def _stage(run: Record, stage: str) -> Mapping[str, Mapping[str, float]]:
    found: Mapping[str, Mapping[str, float]] = run["summary"]["stages"].get(stage, {})
    return found


def _of(run: Record) -> Callable[[str], Mapping[str, Mapping[str, float]]]:
    return lambda stage: _stage(run, stage)


def _values(runs: Iterable[Record], *, stage: str, metric: str) -> list[float]:
    """Of the runs that trained the stage."""
    runs = [run for run in runs if run["shares"] is None or stage not in SHARED]
    return [_stage(run, stage)[metric]["value"] for run in runs if metric in _stage(run, stage)]


def _spread(values: Sequence[float], *, sign: bool = False) -> str:
    if not values:
        return ""
    form = "{:+.3f}" if sign else "{:.2f}"
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _mean(values: Sequence[float]) -> str:
    """Mean with the 95 % interval of Student's t over the runs, each of which is one draw."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = T_95[min(len(values) - 1, len(T_95)) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def main() -> None:
    """Write all pages."""
    runs = records()
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = filled_in(before, runs=runs)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
