"""`python -m benchmarks.demo` runs the demo and its controls on several seeds and CPU capabilities, and records them.

  python -m benchmarks.demo --seeds 0 1 2 --capabilities avx2 avx512

A run is `recipe=ablation_tiny`, which is the demo from its clips on and the controls, in a folder of its own; the
capabilities of a seed share the clips, whose bytes do not depend on them. Recorded are its summary and what it was
measured on, in `benchmarks/results/demo/seed-N-CAPABILITY.json`; `python -m benchmarks.demo_page` writes README and
docs from them.

  python -m benchmarks.demo --seeds 1 2 --share runs/demo/seed-0-avx512

takes clips, base weights and stages 1 to 3 of that run, and trains the stages behind them with seeds of their own: what
differs between such runs is what stages 4 to 6 and their controls do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.table import RESULTS, machine, versions

DEMO = RESULTS / "demo"
ROOT = Path(__file__).resolve().parents[1]
CAPABILITIES = ("default", "avx2", "avx512")
RECIPE = "ablation_tiny"
RECORD = "record.json"
SHARED = ("base", "features", "audio_warmup", "pretrain", "sft")
"""What a run with `share` takes from another one."""


def run(seed: int, *, capability: str, threads: int, work: Path, share: Path | None = None) -> dict[str, Any]:
    """Run the demo with its controls and return the record.

    Args:
        seed: of clips, base weights and stages.
        capability: kernels that torch may use (ATEN_CPU_CAPABILITY).
        threads: of each process.
        work: folder of the runs; finished parts are taken up again.
        share: another run, whose clips, base weights and first stages are taken; None makes them.

    Raises:
        RuntimeError: a step failed; a target that is missed does not raise.
    """
    data, runs = work / f"data-{seed}", work / name_of(seed, capability=capability, shared=share is not None)
    if share is not None:
        data = work / f"data-{json.loads((share / RECORD).read_text())['seed']}"
        runs.mkdir(parents=True, exist_ok=True)
        for part in SHARED:
            if not (runs / part).exists():
                (runs / part).symlink_to((share / part).resolve())
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(threads)}
    began = time.monotonic()
    words = [f"recipe={RECIPE}", f"given.seed={seed}", f"given.data={data}", f"given.run={runs}"]
    if share is not None:
        words.append("stale=keep")  # they were trained with another seed, and that is meant
    command = [sys.executable, "-m", "arcvideo.pipeline", *words]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status not in (0, 3):
        raise RuntimeError(f"seed {seed}, {capability}: {RECIPE} ended with {status}; the same command goes on")
    print(f"seed {seed}, {capability}: {time.monotonic() - began:.0f} s", flush=True)
    record = {
        "seed": seed,
        "shares": None if share is None else json.loads((share / RECORD).read_text())["name"],
        "name": runs.name,
        "capability": capability,
        "threads": threads,
        "machine": machine(),
        "versions": versions(),
        "summary": json.loads((runs / "summary.json").read_text()),
    }
    (runs / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return record


def name_of(seed: int, *, capability: str, shared: bool) -> str:
    """Name of a run."""
    return f"seed-{seed}-{capability}" + ("-shared" if shared else "")


def main(arguments: list[str] | None = None) -> int:
    """0 when every run was recorded and met its targets, 3 when one missed a target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--capabilities", nargs="+", choices=CAPABILITIES, default=["avx2", "avx512"])
    parser.add_argument("--threads", type=int, default=1, help="of each process (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/demo"), help="folder of the runs (%(default)s)")
    parser.add_argument("--share", type=Path, help="a recorded run, whose first three stages are taken")
    options = parser.parse_args(arguments)
    DEMO.mkdir(parents=True, exist_ok=True)
    passed = True
    for seed in options.seeds:
        for capability in options.capabilities:
            record = run(seed, capability=capability, threads=options.threads, work=options.work, share=options.share)
            (DEMO / f"{record['name']}.json").write_text(json.dumps(record, indent=1) + "\n")
            passed &= record["summary"]["passed"]
    return 0 if passed else 3


if __name__ == "__main__":
    sys.exit(main())
