"""The numbers of a step: what each rank tells the others, and what comes of it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from arcvideo.model.settings import ModelSettings
from arcvideo.runner.engine import StepOutcome
from arcvideo.tracking.cost import useful_flops
from arcvideo.tracking.metrics import Sums, merge
from arcvideo.types import StepData


def facts_of(
    data: StepData,
    *,
    sums: Sums,
    waited: float,
    sizes: ModelSettings | None,
    trained: Collection[str],
) -> dict[str, Any]:
    """Return what a rank tells the others about its share of a step; JSON-able.

    Args:
        data: of the step.
        sums: loss and metrics over them.
        waited: seconds until they were there.
        sizes: of the model, for its FLOPs; None for a model that is not ours.
        trained: names of the modules that train.
    """
    flops = sum(useful_flops(batch, settings=sizes, trained=trained) for batch in data.batches) if sizes else 0.0
    return {
        "pairs": sums.pairs(),
        "counts": data.counts,
        "metrics": dict(data.metrics),
        "tokens": sum(int(batch.input_ids.numel()) for batch in data.batches),
        "flops": flops,
        "packs": [zlib.crc32("\n".join(batch.keys).encode()) for batch in data.batches],
        "waited": waited,
    }


def values_of(
    parts: Sequence[dict[str, Any]],
    *,
    outcome: StepOutcome,
    loss: float,
    weight: float,
    seconds: float,
    lr: float,
    peak: float | None,
    memory: Mapping[str, float],
) -> dict[str, Any]:
    """Return the numbers of a step over all ranks.

    Args:
        parts: the ranks' facts.
        outcome: of the optimizer step.
        loss: mean over all target weights.
        weight: their sum.
        seconds: of the step.
        lr: largest learning rate.
        peak: FLOP/s of one device, for MFU.
        memory: `memory/...` of the device that needed most, GiB.
    """
    tokens = sum(part["tokens"] for part in parts)
    flops = sum(part["flops"] for part in parts)
    packs = sorted(number for part in parts for number in part["packs"])
    waited = max(part["waited"] for part in parts)
    values: dict[str, Any] = {
        "train/loss": loss,
        "train/grad_norm": outcome.grad_norm,
        "train/lr": lr,
        "train/weight": weight,
        "train/tokens": tokens,
        "train/skipped": int(not outcome.applied),
        # Which samples stood together, whichever rank had them.
        "data/packs": f"{zlib.crc32(repr(packs).encode()):08x}",
        "time/step": seconds,
        "time/data": waited,
        "time/update": seconds - waited,
        "speed/tokens_per_second": tokens / seconds,
        "speed/update_tokens_per_second": tokens / max(seconds - waited, 1e-9),
        **memory,
    }
    if flops:
        values["speed/tflops"] = flops / seconds / 1e12
        if peak:
            values["speed/mfu"] = flops / seconds / (peak * len(parts))
    figures = merge([part["pairs"] for part in parts]) | parts[0]["metrics"]
    return values | {f"train/{name}": value for name, value in sorted(figures.items())}


def passed_over(step: int, *, seconds: float) -> dict[str, Any]:
    """Return the numbers of a step on which no rank had anything to train, after `seconds` of waiting for its data."""
    return {"step": step, "train/passed_over": 1, "train/tokens": 0, "time/step": seconds, "time/data": seconds}


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a line of metrics.jsonl, without the step."""
    numbers = {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
