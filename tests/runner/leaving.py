"""What ranks do in tests that kill, stop or slow one of them: a run of the tiny model, spoken of as a stage's is."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from arcvideo.lineage.lock import launch
from arcvideo.processes.activity import note
from arcvideo.processes.ranks import World, barrier
from arcvideo.processes.terminal import one_voice
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import RunnerSettings, ScheduleSettings
from tests.runner.job import TRAIN, DyingRows, build_engine
from tests.runner.tiny import cross_entropy


def run(*, world: World, folder: str, patience: int, slow_disk: bool = False) -> None:
    """Train far longer than the test lasts, with a checkpoint every other step.

    Args:
        world: this rank.
        folder: of the run.
        patience: `runner.hang_seconds`.
        slow_disk: from step 4 on the disk of the last rank takes ten minutes for a file.
    """
    source = DyingRows(rank=world.rank, ranks=world.size)
    source.pause = 0.05
    settings = RunnerSettings(steps=1 << 20, save_every=2, log_every=1 << 20, liveness=False, hang_seconds=patience)
    rank, ranks, job = launch()
    if slow_disk and rank == ranks - 1:
        os.fsync = _slow(Path(folder) / "checkpoints" / "step-4")
    with one_voice(Path(folder), rank=rank, ranks=ranks, job=job, patience=patience):
        Runner(
            engine=build_engine(world=world, stage=2), source=source, objective=cross_entropy, settings=settings,
            schedule=ScheduleSettings(), train=TRAIN, folder=Path(folder), identity="tiny",
        ).run()  # fmt: skip


def _slow(after: Path) -> Any:
    """Return an fsync that takes ten minutes once that checkpoint is there."""
    fsync = os.fsync

    def slow(file: int) -> None:
        if after.exists():
            time.sleep(600)
        fsync(file)

    return slow


def export(*, world: World, folder: str, patience: int) -> None:
    """Have the first rank work alone for ten minutes while the others wait for it, as after the loop."""
    rank, ranks, job = launch()
    with one_voice(Path(folder), rank=rank, ranks=ranks, job=job, patience=patience):
        note("exporting")
        if world.first:
            (Path(folder) / "exporting").touch()
            time.sleep(600)
        barrier(world=world)
