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
    planned_stages,
    typed_recipe,
)
from arcvideo.files import error_line
from arcvideo.preflight.estimate import Estimate, estimate, row_of
from arcvideo.preflight.fitting import full_together, misfits
from arcvideo.preflight.machine import GIB, Machine, machine_of
from arcvideo.preflight.measured import Measured, error_table, measured
from arcvideo.processes.children import run_child
from arcvideo.processes.terminal import speak_plainly

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


def table(forecasts: Sequence[Estimate], *, machine: Machine) -> str:
    """Return the estimates, a line a stage."""
    rows = [
        f"{'stage':<14}{'samples':>10}{'tokens':>10}{'packs':>8}{'steps/ep':>9}{'steps':>7}{'FLOPs':>9}{'hours':>8}"
        f"{'weights':>9}{'grads':>7}{'optim':>7}{'activ':>7}{'rollout':>8}{'GPU':>7}{'host':>7}{'disk':>7}"
        + (f"{'price':>9}" if machine.price else "")
        + "  counts"
    ]
    for forecast in forecasts:
        gpu, epoch = forecast.gpu, forecast.epoch
        sizes = (gpu.gradients, gpu.optimizer, gpu.activations)
        ends = (gpu.total, forecast.host, forecast.disk)
        rows.append(
            f"{forecast.name:<14}{epoch.samples:>10.0f}{epoch.tokens:>10.3g}{epoch.packs:>8}{epoch.steps:>9}{forecast.steps:>7}"
            f"{forecast.flops:>9.2g}{forecast.seconds / 3600:>8.2f}{gpu.weights / GIB:>9.1f}"
            + "".join(f"{size / GIB:>7.1f}" for size in sizes)
            + f"{gpu.rollout / GIB:>8.1f}"
            + "".join(f"{size / GIB:>7.1f}" for size in ends)
            + (f"{machine.cost(forecast.seconds):>9.2f}" if machine.price else "")
            + f"  {epoch.how}"
        )
    rows += [_total(forecasts, machine=machine)] if len(forecasts) > 1 else []
    assumed = f"{machine.gpus} x {machine.device} at {machine.utilization:.0%} of {machine.peak / 1e12:g} TFLOP/s"
    notes = [f"samples to steps/ep: of an epoch. Memory and disk in GiB. Assumed: {assumed}."]
    if any(forecast.epoch.how == "declared" for forecast in forecasts):
        notes.append("declared: shards are not there; sizes are those that the recipe expects, not counted ones.")
    if any(forecast.steps != forecast.epoch.steps for forecast in forecasts):
        notes.append("FLOPs and hours are of `steps` (runner.steps), not of an epoch.")
    if any(forecast.traced for forecast in forecasts):
        notes.append("activ, rollout: traced at full shapes. Neither traces nor formulas were compared with a GPU yet.")
    if len(forecasts) > 1:
        notes.append("all: sums; of memory, the stage that needs most.")
    decoding = sum(forecast.rollout_seconds for forecast in forecasts)
    if decoding:
        notes.append(
            f"Of the hours {decoding / 3600:.2f} are decoding, at {machine.bandwidth / 1e12:g} TB/s of memory."
        )
    return "\n".join([*rows, *notes])


def _total(forecasts: Sequence[Estimate], *, machine: Machine) -> str:
    """Return the line under the stages: work, time, disk and price added up, memory of the stage that needs most."""
    seconds, steps = sum(forecast.seconds for forecast in forecasts), sum(forecast.steps for forecast in forecasts)
    most = (
        max(forecast.gpu.total for forecast in forecasts),
        max(forecast.host for forecast in forecasts),
        sum(forecast.disk for forecast in forecasts),
    )
    flops = sum(forecast.flops for forecast in forecasts)
    return (
        f"{'all':<14}{'':>37}{steps:>7}{flops:>9.2g}{seconds / 3600:>8.2f}{'':>38}"
        + "".join(f"{size / GIB:>7.1f}" for size in most)
        + (f"{machine.cost(seconds):>9.2f}" if machine.price else "")
    )


def _run_largest(stage: PlannedStage) -> int:
    """In a process of its own, which gives everything back."""
    command = [sys.executable, "-m", "arcvideo.preflight.largest", *stage.words]
    return run_child(command)


if __name__ == "__main__":
    speak_plainly()
    main()
