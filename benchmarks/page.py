"""`python -m benchmarks.page` writes docs/performance.md from benchmarks/results/*.json: no figure is typed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.table import RESULTS, ratio_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"

TITLES = {
    "evaluate": "Evaluation",
    "grpo": "GRPO",
    "memory": "Memory of a row of the 7B",
    "model": "Model",
    "overlap": "Clips in both of two sets",
    "peers": "Beside Mosaic Streaming and Energon",
    "plan": "Planning",
    "remote": "Remote shards",
    "runner": "Training loop",
    "scale": "Start at size",
    "slice": "A slice of the 7B",
    "soak": "A long run of tiny steps",
}
COMMANDS = {"soak": "soak"}
"""Result -> what `make` calls it, where that is not `bench-NAME`."""

HEAD = """# Performance

Ratios are measured side by side in one run, in turns, and only after both sides were checked to compute the same. They
carry over between machines better than times do: an absolute time of a busy CPU says little. `python -m
benchmarks.page` writes this page from `benchmarks/results/*.json`; a benchmark without a table below has no recorded
run yet. *Ratio* is how many times better than the baseline we are, with the least and the largest of the run's rounds
where it has several; *bound* what the floating-point operations allow at best; *target* the least we accept.

"""

GPU = """## On a GPU
Not measured: {state}

    make test-gpu

runs, on one CUDA device, training in bf16 under ZeRO 0 to 3 against fp32, the same step cut in several ways, exact
resume, adapters, and one training step of a depth slice of the 7B at its real widths: its loss against fp32 on the CPU,
tokens a second, MFU and peak memory, recorded as the result `slice` beside the others.

    make gpu-day

is for the first half hour on a card: eleven steps with deadlines (ceilings, which kernels run, repeatable gradients, a
full SFT row beside the trace, frames, rollouts beside the roofline, GRPO against copies, kill and resume, two ranks),
none of which stops the others, and a page of measured against predicted. `SIZE=toy` rehearses it on a CPU.

What this means: nothing here says how fast the 7B trains, how much memory it takes, or how collectives over NCCL
scale. `python -m arcvideo.preflight` computes what it should take; a computed figure is not a measured one.

MFU as the progress line and `metrics.jsonl` state it counts useful FLOPs only: forward, and backward of what trains;
recomputed activations and rollouts are not useful work. The formulas are in `arcvideo/flops.py` and tested against
torch's own count.
"""


def table_of(content: dict[str, Any]) -> list[str]:
    """The rows of one result as a Markdown table."""
    lines = ["| figure | ours | baseline | ratio | bound | target | same result |", "|---|---|---|---|---|---|---|"]
    for row in content["rows"]:
        same = {True: "yes", False: "NO", None: "-"}[row["equal"]]
        ratio = ratio_text(row["ratio"], row.get("spread")) + ("" if row["passed"] else " (missed)")
        figures = (_short(row["ours"]), _short(row["baseline"]))
        cells = [row["metric"], *figures, ratio, _short(row["bound"]), _short(row["target"]), same]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(results: Path = RESULTS) -> str:
    """The whole page from the results there are."""
    parts = [HEAD]
    for path in sorted(results.glob("*.json")):
        content = json.loads(path.read_text())
        machine, versions = content["machine"], content["versions"]
        command = COMMANDS.get(path.stem, f"bench-{path.stem}")
        title = TITLES.get(path.stem, path.stem.capitalize())
        lines = [f"## {title} (`make {command}`)", "", *table_of(content), ""]
        lines += [f"- {note}" for note in content["notes"]]
        words = ", ".join(f"{name} {number}" for name, number in versions.items())
        lines += [f"- measured on {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {words}", ""]
        parts.append("\n".join(lines) + "\n")
    if not (results / "slice.json").exists():
        parts.append(GPU.format(state="all figures above are of CPUs."))
    return "".join(parts)


def _short(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.4g}"


if __name__ == "__main__":
    PAGE.write_text(page())
