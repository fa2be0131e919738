"""What cannot fit, and the override that would: found by trying them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from arcvideo.composing.compose import stage_config
from arcvideo.composing.config import ConfigError, RunConfig
from arcvideo.places import CONF_DIR
from arcvideo.preflight.estimate import Estimate, fits, step_unit
from arcvideo.preflight.machine import GIB, Machine
from arcvideo.preflight.memory import checkpoint_disk

ENGINES = ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
"""From the fastest to the smallest."""
ADAPTERS = "lora.rank=16"


def misfits(words: Sequence[str], *, config: RunConfig, estimate: Estimate, machine: Machine) -> list[str]:
    """Return what cannot fit, one sentence each, with the override that would.

    Args:
        words: of the stage's command line.
    """
    problems = []
    key, unit = step_unit(config)
    up = math.ceil(unit / machine.gpus) * machine.gpus
    if unit % machine.gpus:
        problems.append(f"{estimate.name}: {key}={unit} is not a multiple of {machine.gpus} ranks: {key}={up}")
        words = [*words, f"{key}={up}"]
    short = []
    if estimate.gpu.total > machine.room:
        short.append(f"{estimate.gpu.total / GIB:.0f} GiB on a device of {machine.gpu_gib:.0f} GiB")
    if estimate.host > machine.host_gib * GIB:
        short.append(f"{estimate.host / GIB:.0f} GiB of host memory, {machine.host_gib:.0f} there")
    if short:
        remedy = next(iter(_remedies(words, config=config, estimate=estimate, machine=machine)), "")
        problems.append(f"{estimate.name}: {' and '.join(short)}: {remedy or 'more or larger devices'}")
    free, folder = _free(config.stage_dir)
    if estimate.disk > free:
        least = checkpoint_disk(replace(config, runner=replace(config.runner, keep_last=1)))
        remedy = "runner.keep_last=1, or run_dir= on another disk" if least <= free else "run_dir= on another disk"
        problems.append(
            f"{estimate.name}: {estimate.disk / GIB:.1f} GiB of checkpoints, {free / GIB:.1f} free in {folder}: "
            f"{remedy}"
        )
    return problems


def _remedies(words: Sequence[str], *, config: RunConfig, estimate: Estimate, machine: Machine) -> Iterator[str]:
    """Yield overrides with which the stage fits, those that change least first."""
    for extra in _candidates(config, machine=machine):
        try:
            changed = stage_config([*words, *extra])
        except ConfigError:
            continue
        if fits(changed, epoch=estimate.epoch, machine=machine):
            yield " ".join(extra)


def _candidates(config: RunConfig, *, machine: Machine) -> Iterator[list[str]]:
    engines = [f"engine={name}" for name in ENGINES if (CONF_DIR / "engine" / f"{name}.yaml").exists()]
    most = "model.activation_checkpointing=full"
    recompute = [] if config.model.activation_checkpointing == "full" else [most]
    fewer = ["grpo.num_prompts", "grpo.prompts_per_batch"] if config.objective.sampled else []
    smaller = [f"{key}={machine.gpus if 'num' in key else 1}" for key in fewer]
    for least, again, adapters, engine in product([[], smaller], [[], recompute], [[], [ADAPTERS]], ["", *engines]):
        if engine or again or adapters or least:
            yield [*([engine] if engine else []), *again, *adapters, *least]


def _free(folder: Path) -> tuple[int, Path]:
    """Return bytes left where a folder lies or would lie."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free, there
