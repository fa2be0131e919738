"""Which checkpoint a run begins with: its own newest one, else the one of another run that it shall go on from."""

from __future__ import annotations

import sys
from pathlib import Path

from arcvideo.processes.ranks import World, gather_json
from arcvideo.runner.engine import Engine
from arcvideo.runner.protocols import Course
from arcvideo.saving.checkpoint import Checkpoint, CheckpointError, CheckpointFolder, Unusable, read_checkpoint


def first_checkpoint(
    folder: CheckpointFolder, *, identity: str, world: World, continue_from: Path | None
) -> Checkpoint | None:
    """Return the checkpoint to begin with, the same on all ranks; None to begin at the beginning.

    Args:
        folder: of this run.
        identity: of this run.
        world: its ranks.
        continue_from: a checkpoint of another run.

    Raises:
        ValueError: the folder holds checkpoints of another run, or `continue_from` cannot be used.
    """
    # Rank 0 chooses: another rank could see a half-deleted directory.
    if world.first:
        folder.remove_unfinished()
    chosen = folder.newest(say=lambda text: print(text, file=sys.stderr)) if world.first else None
    step = gather_json(chosen.step if chosen else None, world=world)[0]
    if step is None:
        return _of_another(continue_from) if continue_from is not None else None
    found = chosen or folder.at(step)
    if found.identity != identity:
        raise ValueError(
            f"{found.path} belongs to another run of this stage ({found.identity[:12]}, now {identity[:12]}): "
            "settings, data, parent or code changed. Delete the folder, or choose another output folder"
        )
    return found


def take_best(course: Course, *, done: int, folder: CheckpointFolder, engine: Engine) -> None:
    """Put the best weights in place of the last, where those are to come out; every rank must call it.

    Where their checkpoint could not be written, the best before them whose checkpoint is there are taken.

    Args:
        course: knows the best.
        done: steps of the last.
        folder: has the checkpoint of the best.
        engine: holds the last.

    Raises:
        CheckpointError: none of their checkpoints is there.
    """
    best = course.best
    if best is None or best == done:
        return
    # Rank 0 chooses, as above.
    there = folder.first_usable(course.bests) if engine.world.first else None
    step = gather_json(there, world=engine.world)[0]
    found = folder.at(best if step is None else step)
    applied = found.state["steps_applied"]
    engine.load_state(weights=found.tensors("weights"), optimizer=found.tensors("optimizer"), steps_applied=applied)
    course.take(found.step)
    if engine.world.first:
        lost = "" if found.step == best else f"; those after step {best} were better, but could not be written"
        print(
            f"the weights after step {found.step} measured best and are taken (evaluation.best){lost}", file=sys.stderr
        )


def _of_another(path: Path) -> Checkpoint:
    try:
        return read_checkpoint(path)
    except Unusable as reason:
        raise CheckpointError(f"continue_from={path} cannot be used: {reason}") from None
