"""What a recipe needs: `arcvideo preflight recipe=NAME [stage=NAME,...] [device=h200] [gpus=8]`.

  ... utilization=0.4 gpu_memory=GIB host_memory=GIB   what the estimate assumes and what there is
  ... peak_tflops=N bandwidth_tb=N   a device by its numbers (with gpu_memory=), whatever its name
  ... price=2.5        of one device and hour, in your currency: a column and the total
  ... trace=yes        each stage's fullest row and rollout traced at full shapes (a minute each), no formulas
  ... largest=yes|no   train once on the largest batch of every stage, on this machine; yes where an NVIDIA device is
  ... override ...     for every stage, and given.NAME=VALUE, as arcvideo.pipeline takes them

Per stage: samples, tokens, packs, steps, FLOPs, wall time, memory and disk, from settings and index alone; no torch, no
weights. The index must be there (`arcvideo shards index SHARDS`); packs and steps are those that
training will take once a run has counted the tokens, and before that assume questions and answers of ordinary length.
Of a source without shards the sizes under `expect:` of the recipe are taken, and the stage is marked `declared`.
For stages that have finished the estimate stands beside what was measured.
Exit status 1: something is missing; 2: something cannot fit, and the line says which override would make it fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from arcvideo.composing.config import RunConfig
from arcvideo.composing.recipe import (
    ExpectedSource,
    PlannedStage,
    Recipe,
    misspelt,
    planned_stages,
    typed_recipe,
)
from arcvideo.files import error_line
from arcvideo.preflight.estimate import Estimate, estimate, row_of
from arcvideo.preflight.fitting import full_together, misfits
from arcvideo.preflight.machine import Machine, machine_of
from arcvideo.preflight.measured import Measured, error_table, measured
from arcvideo.preflight.table import table
from arcvideo.processes.children import run_child
from arcvideo.processes.command import as_command

OWN_WORDS = (
    "recipe", "stage", "device", "gpus", "utilization", "gpu_memory", "host_memory", "largest", "trace", "price",
    "peak_tflops", "bandwidth_tb",
)  # fmt: skip
DEVICE_FILE = Path("/dev/nvidia0")
"""There where a device is: known without importing torch."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Estimate the stages of a recipe, say what does not fit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in OWN_WORDS}
    extra = [word for word in words if word.partition("=")[0] not in OWN_WORDS and not word.startswith("given.")]
    if problems := misspelt(extra, own=OWN_WORDS):
        sys.exit(f"error: {problems[0]}")
    try:
        sys.exit(_preflight(own, words=words, extra=extra))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error_line(error)}")


def _preflight(own: dict[str, str], *, words: Sequence[str], extra: Sequence[str]) -> int:
    if "recipe" not in own:
        raise ValueError("name one recipe: python -m arcvideo.preflight recipe=tiny_shorts")
    for key in ("largest", "trace"):
        if own.get(key, "no") not in ("yes", "no"):
            raise ValueError(f"{key}={own[key]}: yes or no")
    recipe = typed_recipe(own["recipe"], words=words, extra=extra)
    machine = machine_of(own, recipe=recipe.machine)
    stages = _chosen(recipe, own=own, extra=extra)
    forecasts, problems, errors = _estimates(
        stages, machine=machine, expect=recipe.expect, trace=own.get("trace", "no") == "yes"
    )
    print(table(forecasts, machine=machine))
    if "gpu_memory" in own and "device" not in own:
        print(f"gpu_memory= changes the memory alone: speed is that of {machine.device}; device=NAME changes both.")
    if errors:
        print(error_table(errors))
    for problem in problems:
        print(f"does not fit: {problem}")
    if problems:
        return 2
    if own.get("largest", "yes" if DEVICE_FILE.exists() and machine.device != "cpu" else "no") == "yes":
        return max((_run_largest(stage) for stage in stages), default=0)
    return 0


def _chosen(recipe: Recipe, *, own: dict[str, str], extra: Sequence[str]) -> list[PlannedStage]:
    stages = planned_stages(recipe, extra=extra)
    names = [stage.name for stage in stages]
    wanted = own["stage"].split(",") if "stage" in own else names
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise ValueError(f"stage={unknown[0]}: the recipe has {', '.join(names)}")
    return [stage for stage in stages if stage.name in wanted]


def _estimates(
    stages: Sequence[PlannedStage], *, machine: Machine, expect: Mapping[str, ExpectedSource], trace: bool
) -> tuple[list[Estimate], list[str], list[Measured]]:
    """Return the estimate of each stage, what does not fit, and what was measured."""
    forecasts, problems, errors = [], [], []
    traced = _tracer(machine) if trace else lambda forecast, config: forecast
    for stage in stages:
        forecast = traced(estimate(stage.config, machine=machine, expect=expect), stage.config)
        forecasts.append(forecast)
        problems += misfits(stage.words, config=stage.config, estimate=forecast, machine=machine)
        errors += measured(stage.config, estimate=forecast, machine=machine)
    problems = problems or full_together([(stage.config, row) for stage, row in zip(stages, forecasts, strict=True)])
    return forecasts, problems, errors


def _tracer(machine: Machine) -> Callable[[Estimate, RunConfig], Estimate]:
    """Return what puts traces in place of a stage's formulas."""
    from arcvideo.preflight.tracing import Tracing  # torch is imported with it

    tracing = Tracing()

    def traced(forecast: Estimate, config: RunConfig) -> Estimate:
        row = row_of(config, epoch=forecast.epoch)
        return replace(
            forecast, gpu=tracing.memory(forecast.gpu, config=config, row=row, ranks=machine.gpus), traced=True
        )

    return traced


def _run_largest(stage: PlannedStage) -> int:
    """In a process of its own, which gives everything back."""
    command = [sys.executable, "-m", "arcvideo.preflight.largest", *stage.words]
    return run_child(command)


if __name__ == "__main__":
    as_command(main)
