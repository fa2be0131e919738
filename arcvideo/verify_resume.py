"""Does a resumed run of a stage have the bits of a straight one? `... train stage=sft verify_resume=40` finds out.

The stage's own settings, data and ranks train the same steps twice in folders of their own: once without a stop, once
stopped after a random step and started anew from its checkpoint. Losses, data order and gradient norms of every step
and all tensors, counters and random states at the end must agree bit for bit.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arcvideo.composing.config import RunConfig
from arcvideo.lineage.parents import Parent
from arcvideo.processes.ranks import gather_json, join
from arcvideo.rollout.measure import TIMES
from arcvideo.saving.checkpoint import CheckpointFolder
from arcvideo.stage import rehearse
from arcvideo.tracking.metrics import read_metrics
from arcvideo.tracking.settings import LoggerSettings

FOLDER = "verify_resume"
_MEASURED = ("time/", "speed/", "memory/", *(f"train/{name}" for name in TIMES))
"""Numbers that no two runs share."""
_COUNTERS = ("random", "steps_applied", "skipped", "spikes", "counts", "held")
"""What a checkpoint's state has to agree in."""


def verify_resume(config: RunConfig, *, parent: Parent) -> bool:
    """Do the experiment and print the verdict; all ranks together.

    Returns:
        Whether all is equal. The folders of the two runs stay when it is not.

    Raises:
        ValueError: the stage cannot run at all.
    """
    world, steps = join(hang_seconds=config.runner.hang_seconds), config.verify_resume
    root = config.stage_dir / FOLDER
    stop = gather_json(random.SystemRandom().randrange(1, steps), world=world)[0]
    if world.first:
        shutil.rmtree(root, ignore_errors=True)
        print(f"{steps} steps without a stop, then {stop} steps, a stop and the rest; in {root}", flush=True)
    gather_json(None, world=world)
    for name, ends in (("straight", [steps]), ("resumed", [stop, steps])):
        alone = replace(config, output=f"{root.relative_to(config.run_dir)}/{name}", logger=LoggerSettings())
        for end in ends:
            rehearse(alone, parent=parent, until=end)
    mismatch = difference(root / "straight", root / "resumed", steps=steps) if world.first else None
    mismatch = gather_json(mismatch, world=world)[0]
    if world.first and mismatch is None:
        shutil.rmtree(root, ignore_errors=True)
        print(f"equal: stopped after step {stop} and resumed, all {steps} steps and the final state have the same bits")
    elif world.first:
        where = "before the stop: the run does not repeat itself" if mismatch["step"] < stop else "after the resume"
        print(f"different: step {mismatch['step']} ({where}): {mismatch['what']}. Both runs are in {root}", flush=True)
    return mismatch is None


def difference(first: Path, second: Path, *, steps: int) -> dict[str, Any] | None:
    """Return the first difference of two runs of `steps` steps: `step`, counted from 0, and `what` it is; None without
    any.
    """
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (first, second)]
    tensors = _tensor_difference(first, second, steps=steps)
    for step in range(steps):
        mine, theirs = (_told(run, step) for run in lines)
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                what = f"{name} {mine.get(name)} and {theirs.get(name)}"
                return {"step": step, "what": what + (f"; at the end {tensors}" if tensors else "")}
    return {"step": steps - 1, "what": tensors} if tensors else None


def _told(lines: list[dict[str, Any]], step: int) -> dict[str, str]:
    """Return the comparable numbers of a step, as text: a loss that is not a number equals itself."""
    numbers: Mapping[str, Any] = next((line for line in lines if line["step"] == step), {})
    return {name: json.dumps(value) for name, value in numbers.items() if not name.startswith(_MEASURED)}


def _tensor_difference(first: Path, second: Path, *, steps: int) -> str | None:
    mine, theirs = (CheckpointFolder(folder / "checkpoints").at(steps) for folder in (first, second))
    for kind in ("weights", "optimizer"):
        ours, others = mine.tensors(kind), theirs.tensors(kind)
        for name in sorted(set(ours) | set(others)):
            if name not in ours or name not in others:
                return f"{kind} {name} is in one checkpoint only"
            a, b = ours[name], others[name]
            if not torch.equal(a.view(torch.int32), b.view(torch.int32)):
                return f"{kind} {name} differs by up to {float((a - b).abs().max()):.3g}"
    for name in _COUNTERS:
        if mine.state[name] != theirs.state[name]:
            return f"{name} of the checkpoint differs"
    return None
