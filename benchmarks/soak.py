"""A long run of tiny steps: do memory, descriptors, threads and processes stay as they are? (`make soak`).

A real GRPO stage, started as a user starts one, in a process of its own: workers decode every clip anew, every step
samples completions and trains on them, checkpoints are written on the way. Beside it the whole family of its processes
is looked at in /proc. Every look is a JSON line; at the end each series is judged: what its trend adds up to over the
run against how far it strays from its trend.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.table import Row, report

ROOT = Path(__file__).resolve().parents[1]
SERIES = ("rss_mib", "children_rss_mib", "descriptors", "threads", "processes")
WARM_UP = 1 / 3
"""Share of a run that is not judged: caches fill, allocators find their size."""
BLOCKS = 12
"""Pieces of the rest; the median of each is one figure, so that a look at an odd moment counts little."""
LEAST = {"rss_mib": 4.0, "children_rss_mib": 4.0, "descriptors": 0.5, "threads": 0.5, "processes": 0.5}
"""Noise that is assumed where less is seen: pages come in pieces, and counts are whole numbers."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The family of a run at one instant."""

    seconds: float
    """Since its start."""
    step: int
    """Steps done."""
    rss_mib: float
    """Of the run itself, without pages of files it has mapped, which the kernel takes back as it likes."""
    children_rss_mib: float
    """Of all its workers, likewise."""
    descriptors: int
    """Open files of all processes."""
    threads: int
    """Of all processes."""
    processes: int
    """The run and its workers."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether one series stays as it is."""

    name: str
    level: float
    """Its median."""
    growth: float
    """What its trend adds up to over the judged part."""
    noise: float
    """How far it strays from the trend, from the lowest to the highest."""

    @property
    def flat(self) -> bool:
        """Whether it grows by no more than its own noise."""
        return self.growth <= self.noise


def judge(looks: Sequence[Look]) -> list[Verdict]:
    """Return a verdict on each series over the run without its beginning.

    Raises:
        ValueError: too few looks to say anything.
    """
    rest = looks[int(len(looks) * WARM_UP) :]
    if len(rest) < 2 * BLOCKS:
        raise ValueError(f"{len(looks)} looks are too few for a verdict: let it run longer")
    pieces = np.array_split(np.arange(len(rest)), BLOCKS)
    verdicts = []
    for name in SERIES:
        values = np.array([getattr(look, name) for look in rest], dtype=float)
        medians = np.array([np.median(values[piece]) for piece in pieces])
        places = np.arange(BLOCKS)
        slope, start = np.polyfit(places, medians, 1)
        strays = medians - (start + slope * places)
        noise = max(float(np.ptp(strays)), LEAST[name])
        verdicts.append(
            Verdict(name=name, level=float(np.median(values)), growth=float(slope) * (BLOCKS - 1), noise=noise)
        )
    return verdicts


def look(root: int, *, began: float, step: int) -> Look | None:
    """Return how a process and all below it are now; None when it has ended."""
    facts: dict[int, tuple[int, float, int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if fields[0] in "ZX":
                continue
            status = (path / "status").read_text()
            own = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem")))
            facts[int(path.name)] = (int(fields[1]), own / 1024, int(fields[17]))
    family, waiting = [root], [root]
    while waiting:
        parent = waiting.pop()
        born = [number for number, fact in facts.items() if fact[0] == parent]
        family += born
        waiting += born
    if root not in facts:
        return None
    descriptors = 0
    for number in family:
        with contextlib.suppress(OSError):
            descriptors += len(os.listdir(f"/proc/{number}/fd"))
    return Look(
        seconds=round(time.monotonic() - began, 1),
        step=step,
        rss_mib=round(facts[root][1], 2),
        children_rss_mib=round(sum(facts[number][1] for number in family[1:]), 2),
        descriptors=descriptors,
        threads=sum(facts[number][2] for number in family),
        processes=len(family),
    )


def _made(folder: Path) -> None:
    """Make clips and base weights; the latter hardly trained."""
    steps = ["--vision-steps=3", "--audio-steps=3", "--language-steps=3", "--workers=1", "--threads=1"]
    data = ["--out=data", "--clips=12", "--test-clips=2", "--texts=4", "--workers=1"]
    for words in (
        ["-m", "arcvideo.synthetic", *data],
        ["-m", "arcvideo.synthetic.base", "--data=data", "--out=base", "--features=features", *steps],
    ):
        subprocess.run([sys.executable, *words], cwd=folder, env=_environment(), check=True, timeout=1800,
                       stdout=subprocess.DEVNULL)  # fmt: skip


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def command(steps: int, *, extra: Sequence[str] = ()) -> list[str]:
    """Return what is typed for the run."""
    words = [
        "stage=grpo", "data_dir=data", "base=base", "parent=base", "run_dir=run", "threads=1", f"runner.steps={steps}",
        "runner.save_every=50", "runner.log_every=100", "runner.liveness_scan=1", "schedule.warmup_steps=1",
        "data.token_budget=1024", "data.workers=2", "feature_cache=false", "evaluation.shards=''",
        "evaluation.optimize=train/loss", "grpo.num_prompts=1", "grpo.prompts_per_batch=1", "grpo.num_generations=2",
        "grpo.max_completion_length=4", "grpo.require_reward_spread=false",
        # Gradients of two completions of untrained weights are noise; the weights hardly move.
        "optimizer.lr=1e-7", "runner.spike_z=0",
    ]  # fmt: skip
    return [sys.executable, "-m", "arcvideo.train", *words, *extra]


def soak(
    folder: Path, *, steps: int, out: Path, minutes: float = 1e9, every: float = 2.0, extra: Sequence[str] = ()
) -> list[Look]:
    """Run a stage to its end, or for so many minutes, and return what was seen of it once it trained.

    Args:
        folder: for data, weights and the run.
        steps: of the stage.
        out: receives a JSON line for each look.
        minutes: after which it is asked to stop.
        every: seconds between two looks.
        extra: further words of the command.

    Raises:
        RuntimeError: the run failed.
    """
    _made(folder)
    looks: list[Look] = []
    metrics = folder / "run" / "grpo" / "metrics.jsonl"
    with (folder / "said.txt").open("w") as said, out.open("w") as rows:
        run = subprocess.Popen(
            command(steps, extra=extra), cwd=folder, env=_environment(), stdout=said, stderr=said, text=True
        )
        began, place, done = time.monotonic(), 0, 0
        try:
            while run.poll() is None:
                time.sleep(every)
                if metrics.exists():
                    with metrics.open("rb") as file:
                        file.seek(place)
                        new = file.read()
                    place, done = place + len(new), done + new.count(b"\n")
                # Building is no part of it.
                seen = look(run.pid, began=began, step=done) if 0 < done < steps else None
                if seen is not None:
                    looks.append(seen)
                    rows.write(json.dumps(asdict(seen)) + "\n")
                    rows.flush()
                if time.monotonic() - began > 60 * minutes:
                    run.send_signal(signal.SIGTERM)
                    run.wait(timeout=600)
        finally:
            run.kill()
            run.wait()
    if run.returncode not in (0, 85):
        raise RuntimeError(f"the run ended with {run.returncode}: {(folder / 'said.txt').read_text()[-2000:]}")
    # Nor is what follows the last step: workers end, the export is written.
    return [one for one in looks if one.step < done]


def main() -> int:
    """Print the verdicts and write results/soak.json; exit status 1 when something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop the run after so many, with a checkpoint")
    parser.add_argument("--out", type=Path, default=Path("soak.jsonl"), help="the looks, a JSON line each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        looks = soak(Path(folder), steps=options.steps, out=options.out.absolute(), minutes=options.minutes)
    rows = [
        Row(metric=f"growth of {one.name} after the first third, level {one.level:g} (baseline: its noise)",
            ours=one.growth, baseline=one.noise, ratio=one.noise / max(one.growth, 0.01 * one.noise), target=1.0)
        for one in judge(looks)
    ]  # fmt: skip
    return report(
        "soak",
        rows,
        notes=[
            f"{looks[-1].step} steps of GRPO in {looks[-1].seconds:.0f} s, 2 decoding workers, a checkpoint every 50 "
            f"steps; {len(looks)} looks",
            "growth: a line through the medians of twelve pieces of the run; noise: how far these stray from that line",
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
