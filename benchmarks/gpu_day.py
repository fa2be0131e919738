"""`make gpu-day`: everything that only a GPU can tell, in one command of at most thirty minutes.

Eleven steps (`benchmarks/gpu_steps.py`), each in a process of its own with a deadline, each printing one line of JSON.
Nothing stops at a failure: it is recorded and the next step runs. At the end stands a page of what was measured beside
what was predicted, and which targets hold. No network, one GPU; a second one is used where there is one.
`SIZE=toy` runs all of it on a CPU with a model of a few thousand parameters, which shows that it works and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import RESULTS, machine, versions

BUDGET = 1800
"""Seconds for all steps; what a step leaves over the later ones may use, up to their own deadline."""
DEADLINES = {
    "environment": 60, "tests": 240, "ceilings": 90, "backends": 60, "determinism": 120, "sft": 360, "vit": 120,
    "rollouts": 360, "grpo": 240, "state": 240, "ranks": 120,
}  # fmt: skip
"""Seconds of each step, in order; together the budget and a little, as few steps need all of theirs."""
BUILD = Path("build/gpu_day")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a figure has to reach."""

    name: str
    step: str
    figure: str
    least: float | None = None
    most: float | None = None

    def verdict(self, figures: Mapping[str, Any]) -> str:
        """Return held, missed or unmeasured."""
        value = figures.get(self.figure)
        if not isinstance(value, (int, float)):
            return "unmeasured"
        low = self.least is None or value >= self.least
        return "held" if low and (self.most is None or value <= self.most) else "missed"


TARGETS = (
    Target(name="SFT at real widths reaches half of the peak (MFU)", step="sft", figure="best_mfu", least=0.5),
    Target(name="rollouts of 64 rows reach half of the roofline", step="rollouts", figure="share_64", least=0.5),
    Target(name="GRPO update beats G copies five times", step="grpo", figure="speedup", least=5.0),
    Target(name="peak memory within 10 % of the trace", step="sft", figure="peak_over_trace", least=0.9, most=1.1),
    Target(name="a killed run goes on bit for bit", step="state", figure="resume_equal", least=1),
    Target(name="gradients of a row repeat bit for bit", step="determinism", figure="strict_equal", least=1),
    Target(name="the GPU tests pass", step="tests", figure="failed", most=0),
)


def run_step(name: str, *, size: str, deadline: float) -> dict[str, Any]:
    """Run one step in a process of its own and return what it found, or how it failed.

    Args:
        name: one of DEADLINES.
        size: full or toy.
        deadline: seconds after which the step and all that it started are killed.
    """
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu_steps", name, size]
    BUILD.mkdir(parents=True, exist_ok=True)
    log = BUILD / f"{name}.log"
    with log.open("w") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        try:
            out, _ = child.communicate(timeout=deadline)
            failed = "" if child.returncode == 0 else _last_line(log) or f"ended with status {child.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, _ = child.communicate()
            failed = f"took more than {deadline:.0f} s"
    found = _last_json(out)
    line = {"step": name, "seconds": round(time.monotonic() - began, 1), "figures": found.get("figures", {}),
            "predicted": found.get("predicted", {}), "skipped": found.get("skipped", "")}  # fmt: skip
    return line | {"failed": failed}


def _last_json(out: str) -> dict[str, Any]:
    """Return the last line that is a JSON object: a step may print what it has before it goes on."""
    for line in reversed(out.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except json.JSONDecodeError:
                continue
    return {}


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def page(lines: Sequence[Mapping[str, Any]], *, size: str, where: str) -> str:
    """Return the page: targets first, then every figure beside what was predicted of it."""
    figures = {line["step"]: line["figures"] for line in lines}
    text = [f"# GPU day ({size})", "", f"{where}.", ""]
    if size == "toy":
        text += ["A rehearsal at toy size: it shows that the steps run; its figures mean nothing.", ""]
    text += ["| target | figure | verdict |", "|---|---|---|"]
    for target in TARGETS:
        found = figures.get(target.step, {})
        text.append(f"| {target.name} | {_word(found.get(target.figure))} | {target.verdict(found)} |")
    for line in lines:
        state = f"FAILED: {line['failed']}" if line["failed"] else "ok"
        state = f"skipped: {line['skipped']}" if line["skipped"] else state
        text += ["", f"## {line['step']} ({line['seconds']:g} s): {state}", ""]
        if line["figures"]:
            text += ["| figure | measured | predicted |", "|---|---|---|"]
        for name, value in line["figures"].items():
            text.append(f"| {name} | {_word(value)} | {_word(line['predicted'].get(name))} |")
    return "\n".join([*text, ""])


def _word(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def no_gpu() -> str:
    """Return why there is no GPU to measure, or nothing."""
    if torch.cuda.is_available():
        return ""
    built = torch.version.cuda
    reason = f"torch is built for CUDA {built} but finds no usable device" if built else "this torch is a CPU build"
    return f"no GPU: {reason}; nothing was measured. SIZE=toy rehearses all steps on the CPU"


def main(words: Sequence[str] | None = None) -> int:
    """Run the steps and write the page; status 1 when a step failed or a target was missed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("full", "toy"), default="full")
    parser.add_argument("--steps", nargs="*", choices=list(DEADLINES), default=list(DEADLINES))
    asked = parser.parse_args(words)
    problem = no_gpu() if asked.size == "full" else ""
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    began, lines = time.monotonic(), []
    for name in asked.steps:
        left = BUDGET - (time.monotonic() - began)
        if left < 5:
            lines.append({"step": name, "seconds": 0.0, "figures": {}, "predicted": {}, "skipped": "",
                          "failed": "no time left"})  # fmt: skip
        else:
            lines.append(run_step(name, size=asked.size, deadline=min(DEADLINES[name], left)))
        print(json.dumps(lines[-1]), flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()["cpu"]
    where = f"{device}; " + ", ".join(f"{name} {number}" for name, number in versions().items())
    content = {"size": asked.size, "where": where, "machine": machine(), "versions": versions(), "steps": lines}
    text = page(lines, size=asked.size, where=where)
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "page.md").write_text(text)
    if asked.size == "full":
        folder = RESULTS / "gpu"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu_day.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / "gpu_day.md").write_text(text)
    print(f"page: {BUILD / 'page.md'}")
    figures = {line["step"]: line["figures"] for line in lines}
    missed = [target for target in TARGETS if target.verdict(figures.get(target.step, {})) == "missed"]
    failed = [line for line in lines if line["failed"]]
    return 1 if failed or (missed and asked.size == "full") else 0


if __name__ == "__main__":
    sys.exit(main())
