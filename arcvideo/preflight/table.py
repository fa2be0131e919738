"""The estimates as text that fits a terminal of 80 columns: an epoch, the run, and the memory of a device."""

from __future__ import annotations

from collections.abc import Sequence

from arcvideo.preflight.estimate import Estimate
from arcvideo.preflight.machine import GIB, Machine

NAME_WIDTH = 24
"""A longer name of a stage is cut: the columns behind it would not fit."""
ALL = "all"
"""First cell of the line under the stages."""


def table(forecasts: Sequence[Estimate], *, machine: Machine) -> str:
    """Return the estimates, three tables with a line a stage, and what was assumed."""
    parts = [_epochs(forecasts), _run(forecasts, machine=machine), _memory(forecasts)]
    return "\n\n".join([*parts, "\n".join(_notes(forecasts, machine=machine))])


def _epochs(forecasts: Sequence[Estimate]) -> str:
    rows = [["an epoch", "samples", "tokens", "packs", "steps/ep", "counts"]]
    for forecast in forecasts:
        epoch = forecast.epoch
        counts = (f"{epoch.samples:.0f}", f"{epoch.tokens:.3g}", str(epoch.packs), str(epoch.steps))
        rows.append([forecast.name, *counts, epoch.how])
    return _aligned(rows)


def _run(forecasts: Sequence[Estimate], *, machine: Machine) -> str:
    priced = ["price"] if machine.price else []
    rows = [["the run", "steps", "FLOPs", "hours", "disk GiB", *priced]]
    steps = [forecast.steps for forecast in forecasts]
    flops = [forecast.flops for forecast in forecasts]
    seconds = [forecast.seconds for forecast in forecasts]
    disk = [forecast.disk for forecast in forecasts]
    figures = list(zip([forecast.name for forecast in forecasts], steps, flops, seconds, disk, strict=True))
    if len(forecasts) > 1:
        figures.append((ALL, sum(steps), sum(flops), sum(seconds), sum(disk)))
    for name, count, work, time, size in figures:
        cost = [f"{machine.cost(time):.2f}"] if machine.price else []
        rows.append([name, str(count), f"{work:.2g}", f"{time / 3600:.2f}", f"{size / GIB:.1f}", *cost])
    return _aligned(rows)


def _memory(forecasts: Sequence[Estimate]) -> str:
    rows = [["memory, GiB", "weights", "grads", "optim", "activ", "rollout", "GPU", "host"]]
    for forecast in forecasts:
        gpu = forecast.gpu
        sizes = (gpu.weights, gpu.gradients, gpu.optimizer, gpu.activations, gpu.rollout, gpu.total, forecast.host)
        rows.append([forecast.name, *(f"{size / GIB:.1f}" for size in sizes)])
    if len(forecasts) > 1:
        most = (max(forecast.gpu.total for forecast in forecasts), max(forecast.host for forecast in forecasts))
        rows.append([ALL, *[""] * 5, *(f"{size / GIB:.1f}" for size in most)])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines: the first column at the left, the others at the right."""
    cut = [[_cut(row[0]), *row[1:]] for row in rows]
    widths = [max(len(row[column]) for row in cut) for column in range(len(cut[0]))]
    widths[0] = max(widths[0], 13)
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(cell.rjust(width + 2) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in cut
    )


def _cut(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}~"


def _notes(forecasts: Sequence[Estimate], *, machine: Machine) -> list[str]:
    assumed = f"{machine.gpus} x {machine.device} at {machine.utilization:.0%} of {machine.peak / 1e12:g} TFLOP/s"
    notes = [f"Assumed: {assumed}."]
    if any(forecast.epoch.how == "declared" for forecast in forecasts):
        notes.append("declared: shards are not there; sizes are those the recipe expects.")
    if any(forecast.steps != forecast.epoch.steps for forecast in forecasts):
        notes.append("FLOPs and hours are of `steps` (runner.steps), not of an epoch.")
    if any(forecast.traced for forecast in forecasts):
        notes.append("activ, rollout: traced at full shapes; not compared with a GPU yet, nor are formulas.")
    if len(forecasts) > 1:
        notes.append(f"{ALL}: sums; of memory, the stage that needs most.")
    decoding = sum(forecast.rollout_seconds for forecast in forecasts)
    if decoding:
        speed = f"{machine.bandwidth / 1e12:g} TB/s of memory"
        notes.append(f"Of the hours {decoding / 3600:.2f} are decoding, at {speed}.")
    return notes
