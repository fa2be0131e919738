"""Steps in which every rank has other modalities, on the real model and the real engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from arcvideo.model.arc_hunyuan import head as heads
from arcvideo.objectives.next_token import NextToken
from arcvideo.objectives.scores import loss_of
from arcvideo.processes.ranks import World, gather_json
from arcvideo.runner.engine import Engine
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import OptimizerSettings, RunnerSettings, ScheduleSettings
from arcvideo.types import Batch, model_inputs
from tests.runner.job import curve, engine_keys
from tests.runner.real import KINDS, TRAIN, Cut, packed, real_model

Schedule = list[list[list[str]]]
"""Rank -> micro-batch -> kinds of the samples in it."""


def drawn(seed: int, *, ranks: int) -> Schedule:
    """A random schedule: as many micro-batches on every rank, each of one to three samples of any kind."""
    chance = random.Random(seed)
    count = chance.randint(1, 3)
    # A rank may be stuck to one modality for the whole step, the hardest case.
    pools = [chance.choice([KINDS, KINDS, *[(kind,) for kind in KINDS]]) for _ in range(ranks)]
    return [[chance.choices(pool, k=chance.randint(1, 3)) for _ in range(count)] for pool in pools]


def rows_of(schedule: Schedule, *, rank: int) -> list[Batch]:
    """A rank's micro-batches."""
    return [
        packed([(1000 * rank + 10 * place + number, kind) for number, kind in enumerate(kinds)])
        for place, kinds in enumerate(schedule[rank])
    ]


def collectives() -> int:
    """Collectives that this process has begun so far, in all of its groups."""
    return sum(group._get_sequence_number_for_group() for group in distributed_c10d._world.pg_map)


@contextmanager
def counted(module: nn.Module, counts: dict[str, list[int]], *, name: str) -> Iterator[None]:
    """While entered, notes how many collectives each call of the module begins."""
    begun: list[int] = []
    handles = [
        module.register_forward_pre_hook(lambda *_: begun.append(collectives())),
        module.register_forward_hook(
            lambda *_: counts.setdefault(name, []).append(collectives() - begun.pop()), always_call=True
        ),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def whole_gradients(engine: Engine) -> dict[str, Tensor]:
    """Name -> gradient of the step, before clipping; every rank must call it."""
    from deepspeed.utils import safe_get_full_grad

    trained = engine.trained_parameters()
    if engine.stage == 0:
        return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}
    return {name: safe_get_full_grad(parameter).cpu().clone() for name, parameter in trained.items()}


def mixed_step(*, world: World, stage: int, schedule: Schedule, gradients: str) -> dict[str, Any]:
    """Forward and backward of a schedule; writes the gradients and returns the collectives of each rank.

    The head takes a few words at a time.

    Returns:
        `towers` and `projectors`: per rank the collectives of each call; `rows`: per rank those of each micro-batch.
    """
    heads.AT_ONCE = 32 * 20
    model = real_model()
    engine = Engine(model, world=world, settings=engine_keys(stage), optimizer=OptimizerSettings(), clip_norm=0.0)
    objective, rows = NextToken(), rows_of(schedule, rank=world.rank)
    counts: dict[str, list[int]] = {"towers": [], "merger": [], "audio": [], "rows": []}
    with (
        counted(model.vision_model.vit, counts, name="towers"),
        counted(model.speech_encoder, counts, name="towers"),
        counted(model.vision_model.perceive, counts, name="merger"),
        counted(model.mlp2, counts, name="audio"),
    ):
        for number, row in enumerate(rows):
            before = collectives()
            loss = loss_of(objective, row, run=engine)
            engine.backward(loss.total, last=number == len(rows) - 1)
            counts["rows"].append(collectives() - before)
    found = whole_gradients(engine)
    if world.first:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, gradients)
    applied = engine.step().applied
    engine.close()
    return {"applied": applied, "counts": gather_json(counts, world=world)}


def plain_gradients(schedule: Schedule) -> dict[str, Tensor]:
    """The same by torch alone, one row after the other."""
    model, objective = real_model(), NextToken()
    for rank in range(len(schedule)):
        for row in rows_of(schedule, rank=rank):
            objective(model(**model_inputs(row)).logits, row).total.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    # `image_sep` takes no part in any forward; the engine calls that zero.
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference of two sets of tensors, as a share of the tensor's largest entry, and whose it is."""
    assert one.keys() == other.keys()
    gaps = {name: float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp(min=1e-6)) for name in one}
    worst = max(gaps, key=lambda name: gaps[name])
    return gaps[worst], worst


def cut_run(
    *, world: World, folder: str, stage: int, rows: int, steps: int = 5, precision: str = "fp32"
) -> list[list[float]]:
    """Train on the same samples cut into `rows` micro-batches; writes the weights and returns loss and norm by step."""
    # With its usual eps AdamW would make a share of `lr` of the rounding in entries without a gradient to speak of.
    optimizer = OptimizerSettings(lr=1e-3, eps=1e-4)
    engine = Engine(
        real_model(), world=world, settings=engine_keys(stage), optimizer=optimizer, clip_norm=0.5, precision=precision
    )
    settings = RunnerSettings(steps=steps, save_every=0, log_every=1000, liveness=False, hang_seconds=120)
    Runner(
        engine=engine, source=Cut(rows=rows, rank=world.rank, ranks=world.size), objective=NextToken(),
        settings=settings, schedule=ScheduleSettings(), train=TRAIN, folder=Path(folder), identity="cut",
    ).run()  # fmt: skip
    weights = dict(engine.weights())
    engine.close()
    if world.first:
        save_file(weights, Path(folder) / "weights.safetensors")
    return curve(folder)
