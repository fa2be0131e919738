"""Forward and backward of a step, on kernels that give the same sums each time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from arcvideo.objectives.scores import loss_of
from arcvideo.runner.engine import Engine
from arcvideo.runner.protocols import Objective
from arcvideo.tracking.cost import MemoryUse, is_out_of_memory
from arcvideo.tracking.metrics import Sums
from arcvideo.types import Batch


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """While entered, and if asked, torch takes kernels whose sums come out the same each time, or refuses.

    Only warning would not do: on CUDA the backward passes of fused attention then stay as they are. Elsewhere
    (sampling, evaluation) torch warns, because some of what runs there has no such kernel.

    Raises:
        ValueError: an operation has none; the message names it and the remedy.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    except RuntimeError as error:
        if refused := _refused(error):
            raise ValueError(
                f"{refused}: runner.deterministic=true trains on kernels that repeat their sums only. Give the "
                "operation another form, or set runner.deterministic=false; the manifest then says that the stage "
                "cannot be repeated bit for bit"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _refused(error: RuntimeError) -> str:
    """Return what torch said no to for want of a repeatable kernel; empty for any other error."""
    first = str(error).partition("\n")[0]
    match = re.match(r"(\S+) does not have a deterministic implementation", first)
    if match:
        return f"{match[1]} has no kernel that repeats its sums here"
    return first.partition(".")[0] if "CUBLAS_WORKSPACE_CONFIG" in str(error) else ""


def add_gradients(
    batches: Sequence[Batch],
    *,
    weight: float,
    engine: Engine,
    objective: Objective,
    memory: MemoryUse,
    extra: Mapping[str, Any],
    deterministic: bool,
) -> tuple[Sums, list[str]]:
    """Run forward and backward of every micro-batch; return the sums, and the samples whose loss was not finite.

    Args:
        batches: of this rank.
        weight: of all targets of the step, over all ranks; the losses are divided by it.
        engine: keeps the gradient.
        objective: loss per batch.
        memory: is told of every micro-batch.
        extra: further arguments of the forward.
        deterministic: `runner.deterministic`.

    Raises:
        OutOfMemory: naming samples and the override that fits.
        ValueError: an operation without a repeatable kernel.
    """
    sums = Sums()
    totals: list[Tensor] = []
    for number, batch in enumerate(batches):
        memory.before()
        try:
            with repeatable(deterministic):
                batch = batch.to(engine.device)
                loss = loss_of(objective, batch, run=partial(engine, **extra))
                engine.backward(loss.total / weight, last=number == len(batches) - 1)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise memory.explain(error, batch=batch) from error
            raise
        memory.after(batch)
        totals.append(loss.total.detach())
        sums.add("loss", totals[-1], 0.0)
        for name, (metric, count) in loss.metrics.items():
            sums.add(name, metric, count)
    losses = torch.stack(totals).tolist()
    pairs = zip(losses, batches, strict=True)
    return sums, [key for loss, batch in pairs if not math.isfinite(loss) for key in batch.keys]
