"""Kill a training run at random instants, again and again: `python -m tests.runner.torture --kills 200`.

A run of the tiny model saves after every step. It is killed with SIGKILL at a random instant, be it in its start,
in a step, in a copy, in a write or in a rename, and is started again. After every kill the newest
checkpoint must load and be no older than before; at the end losses, weights and optimizer must have the bits of a run
that nobody touched.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from arcvideo.processes.ranks import join
from arcvideo.saving.checkpoint import CheckpointFolder
from arcvideo.verify_resume import difference
from tests.runner.job import train

STEPS = 1 << 20
"""More than any killed run gets to: the schedule depends on it."""
EARLY = 0.2
"""Share of the kills within a second of the start; the others come after a first new checkpoint."""


@dataclass(kw_only=True)
class Outcome:
    """What the killing came to."""

    kills: int = 0
    steps: int = 0
    """Of the newest checkpoint at the end."""
    unfinished: int = 0
    """Kills that left a half-written checkpoint."""
    early: int = 0
    """Kills before the first new checkpoint of that start."""


def _named(folder: CheckpointFolder) -> list[int]:
    """Steps of the directories that claim to be checkpoints."""
    return [int(path.name.removeprefix("step-")) for path in folder.root.glob("step-*") if path.suffix == ""]


def attempt(folder: str, until: int, stage: int) -> None:
    """What is killed: train from the newest checkpoint on."""
    torch.set_num_threads(1)
    train(folder, world=join(), stage=stage, steps=STEPS, until=until, save_every=1, liveness=False)


def torture(root: Path, *, kills: int, seed: int, stage: int = 0) -> Outcome:
    """Kill so many times, then compare with a run that was left alone; not from a process that has joined a run.

    Args:
        root: folder for both runs.
        kills: how many.
        seed: of the instants.
        stage: ZeRO stage.

    Raises:
        AssertionError: a checkpoint was lost or damaged, or the runs differ; the message has the kill's number.
    """
    chance, outcome, folder = random.Random(seed), Outcome(), CheckpointFolder(root / "killed" / "checkpoints")
    # Forked from this process, which has imported everything already: 200 starts take minutes, not an hour.
    importlib.import_module("deepspeed.ops").__compatible_ops__.get("any")
    processes = multiprocessing.get_context("fork")
    newest = 0
    while outcome.kills < kills:
        process = processes.Process(target=attempt, args=(str(root / "killed"), STEPS, stage))
        process.start()
        if chance.random() < EARLY:
            process.join(chance.random())
        else:
            while process.is_alive() and not any(step > newest for step in _named(folder)):
                time.sleep(0.005)
            process.join(chance.random() * 0.3)
        assert process.is_alive(), f"kill {outcome.kills}: the run ended by itself with {process.exitcode}"
        process.kill()
        process.join()
        outcome.kills += 1
        outcome.unfinished += any(folder.root.glob("*.tmp-*"))
        found = folder.newest()
        step = found.step if found else 0
        assert step >= max([newest, *_named(folder)]), f"kill {outcome.kills}: step {newest} is lost, {step} is newest"
        outcome.early += step == newest
        newest = step
    outcome.steps = newest + 1
    for name in ("killed", "straight"):
        last = processes.Process(target=attempt, args=(str(root / name), outcome.steps, stage))
        last.start()
        last.join()
        assert last.exitcode == 0, f"{name}: exit status {last.exitcode}"
    found = difference(root / "straight", root / "killed", steps=outcome.steps)
    assert found is None, f"step {found['step']}: {found['what']}"
    return outcome


def main() -> None:
    """Print what came of it; exit status 1 when something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", type=int, default=0, choices=range(4), help="ZeRO stage")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    began = time.monotonic()
    try:
        done = torture(root, kills=options.kills, seed=options.seed, stage=options.stage)
    except AssertionError as error:
        sys.exit(f"failed: {error}; both runs are in {root}")
    shutil.rmtree(root)
    print(
        f"{done.kills} kills in {time.monotonic() - began:.0f} s ({done.early} before the first new "
        f"checkpoint of a start, {done.unfinished} left a half-written one): after each the newest checkpoint loaded; "
        f"{done.steps} steps have the bits of a run that was not touched"
    )


if __name__ == "__main__":
    main()
