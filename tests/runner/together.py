"""What several ranks do in tests: steps that are refused, runs with bad numbers, a rank that hangs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from arcvideo.processes.ranks import World, gather_json
from arcvideo.runner.badnumbers import BadNumbers
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import RunnerSettings, ScheduleSettings
from arcvideo.runner.trainable import tensor_digest, train_only
from arcvideo.types import StepData, model_inputs
from tests.runner.job import TRAIN, build_engine
from tests.runner.tiny import Rows, Tiny, cross_entropy


def refused_step(*, world: World, stage: int, precision: str, offload: bool = False) -> dict[str, Any]:
    """A step, a step whose loss is infinite on the last rank only, a step; and one more engine without the second.

    Returns:
        `kept`: the refused step left every bit; `alike`: the two engines end with the same bits.
    """

    def step(engine: Any, number: int, *, bad: bool = False) -> bool:
        batches = Rows(rank=world.rank, ranks=world.size).batches(number).batches
        for place, row in enumerate(batches):
            loss = cross_entropy(engine(**model_inputs(row)), row).total / 50
            engine.backward(loss * (float("inf") if bad else 1.0), last=place == len(batches) - 1)
        return engine.step().applied

    def bits(engine: Any) -> list[str]:
        return [tensor_digest(engine.weights()), tensor_digest(engine.optimizer_state())]

    ends, kept = [], True
    for disturbed in (True, False):
        engine = build_engine(world=world, stage=stage, precision=precision, offload=offload)
        assert step(engine, 0)
        if disturbed:
            before = bits(engine)
            assert not step(engine, 1, bad=world.rank == world.size - 1)
            kept = bits(engine) == before
        assert step(engine, 2)
        ends.append(bits(engine))
    told = gather_json([kept, ends[0] == ends[1]], world=world)
    return {"kept": all(rank[0] for rank in told), "alike": all(rank[1] for rank in told)}


def read_in_bf16(*, world: World, stage: int) -> dict[str, Any]:
    """Two steps of an engine whose ranks all read fp32, and of one where only the first did.

    Returns:
        `alike`: they start and end with the same bits. `kept`: of each rank, trained and frozen numbers after closing.
    """
    ends, kept = [], []
    for half in (False, True):
        model = Tiny()
        train_only(model, TRAIN)
        if half and not world.first:
            model.to(torch.bfloat16)
        engine = build_engine(world=world, stage=stage, precision="bf16", model=model)
        found = [tensor_digest(engine.weights())]
        for number in range(2):
            batches = Rows(rank=world.rank, ranks=world.size).batches(number).batches
            for place, row in enumerate(batches):
                loss = cross_entropy(engine(**model_inputs(row)), row).total / 50
                engine.backward(loss, last=place == len(batches) - 1)
            engine.step()
        ends.append([*found, tensor_digest(engine.weights()), tensor_digest(engine.optimizer_state())])
        whole = engine.close(everywhere=False)
        kept = [whole.mlp2.weight.numel(), whole.speech_encoder.weight.numel()]
    return {"alike": ends[0] == ends[1], "kept": gather_json(kept, world=world)}


class Poisoned(Rows):
    """Rows of which some, given as (step, place), weigh infinitely much."""

    poisons: list[list[int]]

    def batches(self, step: int) -> StepData:
        """This rank's rows of the step."""
        data = super().batches(step)
        for at, place in self.poisons:
            if at == step and place % self.ranks == self.rank:
                data.batches[place // self.ranks].target_weights[0] = float("inf")
        return data


def poisoned_run(*, world: World, folder: str, stage: int, poisons: list[list[int]], skip_budget: int) -> str:
    """Four steps over poisoned rows; returns the message of the run's end, empty when it went through."""
    source = Poisoned(rank=world.rank, ranks=world.size)
    source.poisons = poisons
    settings = RunnerSettings(steps=4, save_every=0, log_every=100, liveness=False, skip_budget=skip_budget)
    runner = Runner(
        engine=build_engine(world=world, stage=stage), source=source, objective=cross_entropy, settings=settings,
        schedule=ScheduleSettings(), train=TRAIN, folder=Path(folder), identity="tiny",
    )  # fmt: skip
    try:
        runner.run()
    except BadNumbers as error:
        return str(error)
    return ""


class Stuck(Rows):
    """Never comes back with the data of step 2 on the last rank."""

    def batches(self, step: int) -> StepData:
        """The rows, or nothing for an hour."""
        if step == 2 and self.rank == self.ranks - 1:
            the_place_that_hangs()
        return super().batches(step)


def the_place_that_hangs() -> None:
    """Found in the stacks by its name."""
    threading.Event().wait(3600)


def hanging_run(*, world: World, folder: str, seconds: float) -> None:
    """A run whose last rank hangs; `seconds` without progress end it, 0 for never."""
    settings = RunnerSettings(steps=4, save_every=0, log_every=100, liveness=False, hang_seconds=seconds)
    Runner(
        engine=build_engine(world=world, stage=2), source=Stuck(rank=world.rank, ranks=world.size),
        objective=cross_entropy, settings=settings, schedule=ScheduleSettings(), train=TRAIN, folder=Path(folder),
        identity="tiny",
    ).run()  # fmt: skip
