"""Kill a training run at random instants, again and again: `python -m tests.runner.torture --kills 200`.

A run of the tiny model saves after every step. It is killed with SIGKILL at a random instant, be it in its start,
in a step, in a copy, in a write or in a rename, and is started again. After every kill the newest
checkpoint must load and be no older than before; at the end losses, weights and optimizer must have the bits of a run
that nobody touched. With `--ranks 2` one of the ranks is killed, or all; those that are left must end by themselves.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from arcvideo.processes.activity import HANG_EXIT_CODE, LOST_EXIT_CODE
from arcvideo.processes.ranks import join
from arcvideo.processes.terminal import one_voice
from arcvideo.saving.checkpoint import CheckpointFolder
from arcvideo.verify_resume import difference
from tests.runner.job import train
from tests.spawned import free_port

STEPS = 1 << 20
"""More than any killed run gets to: the schedule depends on it."""
PATIENCE = 20.0
"""Seconds that a rank waits for one that does not answer at all."""
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


def attempt(folder: str, until: int, stage: int, rank: int = 0, ranks: int = 1, port: int = 0) -> None:
    """What is killed: train from the newest checkpoint on."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with one_voice(Path(folder), rank=rank, ranks=ranks, job=str(port), patience=PATIENCE):
        train(folder, world=join(), stage=stage, steps=STEPS, until=until, save_every=1, liveness=False)


class Ranks:
    """The processes of one start; forked from this one, which has imported everything: that saves an hour."""

    def __init__(self, folder: Path, *, until: int, stage: int, ranks: int) -> None:
        processes = multiprocessing.get_context("fork")
        port = free_port() if ranks > 1 else 0
        self.all = [
            processes.Process(target=attempt, args=(str(folder), until, stage, rank, ranks, port))
            for rank in range(ranks)
        ]
        for process in self.all:
            process.start()

    @property
    def live(self) -> bool:
        """Whether none has ended."""
        return all(process.is_alive() for process in self.all)

    def end(self, *, seconds: float) -> list[int | None]:
        """Wait for all; returns their statuses, None for one that had to be killed after so many seconds."""
        limit = time.monotonic() + seconds
        for process in self.all:
            process.join(max(limit - time.monotonic(), 0.01))
        statuses = [process.exitcode for process in self.all]
        for process in self.all:
            process.kill()
            process.join()
        return statuses


def torture(root: Path, *, kills: int, seed: int, stage: int = 0, ranks: int = 1) -> Outcome:
    """Kill so many times, then compare with a run that was left alone; not from a process that has joined a run.

    Args:
        root: folder for both runs.
        kills: how many.
        seed: of the instants.
        stage: ZeRO stage.
        ranks: processes of the run.

    Raises:
        AssertionError: a checkpoint was lost or damaged, the runs differ, or a rank did not end that had lost another;
            the message has the kill's number.
    """
    chance, outcome, folder = random.Random(seed), Outcome(), CheckpointFolder(root / "killed" / "checkpoints")
    importlib.import_module("deepspeed.ops").__compatible_ops__.get("any")
    newest = 0
    while outcome.kills < kills:
        run = Ranks(root / "killed", until=STEPS, stage=stage, ranks=ranks)
        if chance.random() < EARLY:
            time.sleep(chance.random())
        else:
            while run.live and not any(step > newest for step in _named(folder)):
                time.sleep(0.005)
            time.sleep(chance.random() * 0.3)
        assert run.live, f"kill {outcome.kills}: the run ended by itself with {run.end(seconds=0)}"
        victims = run.all if chance.random() < 0.3 else [chance.choice(run.all)]
        for process in victims:
            process.kill()
        statuses = run.end(seconds=10 * PATIENCE)
        left = [status for process, status in zip(run.all, statuses, strict=True) if process not in victims]
        assert set(left) <= {LOST_EXIT_CODE, HANG_EXIT_CODE}, f"kill {outcome.kills}: the other ranks ended with {left}"
        outcome.kills += 1
        outcome.unfinished += any(folder.root.glob("*.tmp-*"))
        found = folder.newest()
        step = found.step if found else 0
        assert step >= max([newest, *_named(folder)]), f"kill {outcome.kills}: step {newest} is lost, {step} is newest"
        outcome.early += step == newest
        newest = step
    outcome.steps = newest + 1
    for name in ("killed", "straight"):
        statuses = Ranks(root / name, until=outcome.steps, stage=stage, ranks=ranks).end(seconds=3600)
        assert set(statuses) == {0}, f"{name}: exit status {statuses}"
    differs = difference(root / "straight", root / "killed", steps=outcome.steps)
    assert differs is None, f"step {differs['step']}: {differs['what']}"
    return outcome


def main() -> None:
    """Print what came of it; exit status 1 when something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", type=int, default=0, choices=range(4), help="ZeRO stage")
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    began = time.monotonic()
    try:
        done = torture(root, kills=options.kills, seed=options.seed, stage=options.stage, ranks=options.ranks)
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
