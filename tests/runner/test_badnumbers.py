"""Which steps are refused, and that refusing leaves every bit of the weights."""

from __future__ import annotations

import json
import random
import re
import statistics
from pathlib import Path

import pytest
from torch import Tensor

from arcvideo.objectives.loss import Loss
from arcvideo.processes.ranks import World
from arcvideo.runner.badnumbers import SpikeRule
from arcvideo.runner.protocols import Objective, RunResult
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import RunnerSettings, ScheduleSettings
from arcvideo.runner.trainable import tensor_digest
from arcvideo.types import Batch
from tests.runner.job import TRAIN, build_engine
from tests.runner.test_engine import one_step
from tests.runner.tiny import Rows, cross_entropy


def rule(*, z: float = 5.0, losses: int = 8) -> SpikeRule:
    """A rule that has seen losses and norms around 2 with a median deviation of about 0.1."""
    made = SpikeRule(z=z, window=8)
    for number in range(losses):
        made.accept(loss=2 + 0.1 * (-1) ** number, norm=2 + 0.1 * (-1) ** number)
    return made


def test_only_values_far_above_the_median_are_spikes() -> None:
    assert rule().loss(2.5) is None
    assert rule().loss(-50.0) is None
    assert "is a spike: median 2" in (rule().loss(9.0) or "")
    assert "gradient norm 9 is a spike" in (rule().norm(9.0) or "")


def test_nothing_is_a_spike_before_a_quarter_of_the_window_or_with_the_rule_off() -> None:
    assert rule(losses=1).loss(1e6) is None
    assert rule(losses=2).loss(1e6) is not None
    assert rule(z=0.0).loss(1e6) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_from_the_first_step(value: float) -> None:
    assert rule(z=0.0, losses=0).loss(value) == "loss is not finite"


def test_a_run_that_hardly_moves_any_more_may_meet_an_odd_clip() -> None:
    calm = SpikeRule(z=30, window=8, clip_norm=1.0)
    for _ in range(8):
        calm.accept(loss=0.01, norm=1e-3)
    assert calm.norm(5.0) is None
    assert calm.norm(7.0) is not None
    assert calm.loss(1.5) is None
    assert calm.loss(3.0) is not None


def test_the_window_survives_a_checkpoint() -> None:
    old, new = rule(), SpikeRule(z=5.0, window=8)
    new.restore(json.loads(json.dumps(old.state())))
    assert new.loss(9.0) == old.loss(9.0) is not None


def test_verdicts_are_those_of_medians_of_the_last_values() -> None:
    chance = random.Random(0)
    made, values = SpikeRule(z=3.0, window=8), [round(chance.gauss(2, 1), 1) for _ in range(60)]
    refused = 0
    for number, value in enumerate(values):
        seen = values[max(number - 8, 0) : number]
        if len(seen) >= 2:
            median = statistics.median(seen)
            spread = max(1.4826 * statistics.median(abs(old - median) for old in seen), 0.05)
            assert (made.loss(value) is not None) == (value - median > 3.0 * spread)
            refused += made.loss(value) is not None
        made.accept(loss=value, norm=value)
    assert refused


@pytest.mark.parametrize("stage", range(4))
def test_a_refused_norm_leaves_every_bit_of_the_weights(world: World, stage: int) -> None:
    engine = build_engine(world=world, stage=stage)
    assert one_step(engine)
    before = tensor_digest(engine.weights()), tensor_digest(engine.optimizer_state())
    asked: list[float] = []
    assert not one_step(engine, step=1, refuse=lambda norm: bool(asked.append(norm)) or True)
    assert len(asked) == 1
    assert (tensor_digest(engine.weights()), tensor_digest(engine.optimizer_state())) == before
    assert one_step(engine, step=2)


def of_step_9(batch: Batch) -> bool:
    return int(batch.keys[0].removeprefix("sample-")) // 8 == 9


def jumping(logits: Tensor, batch: Batch) -> Loss:
    """The plain objective, a thousandfold in step 9."""
    loss = cross_entropy(logits, batch)
    return Loss(total=loss.total * (1000 if of_step_9(batch) else 1), metrics=loss.metrics)


def louder(logits: Tensor, batch: Batch) -> Loss:
    """The plain objective; in step 9 the loss is larger and the gradient is not."""
    loss = cross_entropy(logits, batch)
    return Loss(total=loss.total + (1000 if of_step_9(batch) else 0), metrics=loss.metrics)


def steeper(logits: Tensor, batch: Batch) -> Loss:
    """The plain objective; in step 9 the gradient is larger and the loss is not."""
    loss = cross_entropy(logits, batch)
    total = loss.total * 1000 - (loss.total * 999).detach() if of_step_9(batch) else loss.total
    return Loss(total=total, metrics=loss.metrics)


def spiky(folder: Path, *, world: World, objective: Objective, until: int | None = None) -> RunResult:
    settings = RunnerSettings(steps=11, spike_window=8, liveness=False, log_every=100)
    return Runner(
        engine=build_engine(world=world), source=Rows(), objective=objective, settings=settings,
        schedule=ScheduleSettings(), train=TRAIN, folder=folder, identity="tiny",
    ).run(until=until)  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "why"),
    [(jumping, ".* is a spike"), (louder, "loss .* is a spike"), (steeper, "gradient norm .* is a spike")],
)
def test_a_spike_is_skipped_and_the_samples_of_the_step_are_written_down(
    tmp_path: Path, world: World, objective: Objective, why: str
) -> None:
    assert spiky(tmp_path, world=world, objective=objective).skipped == [9]
    (line,) = [json.loads(text) for text in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert (line["step"], line["samples"]) == (9, [f"sample-{number}" for number in range(72, 80)])
    assert re.match(why, line["why"])


@pytest.mark.parametrize("objective", [louder, steeper])
def test_a_resumed_run_remembers_what_is_no_spike(tmp_path: Path, world: World, objective: Objective) -> None:
    assert spiky(tmp_path, world=world, objective=objective, until=9).skipped == []
    assert spiky(tmp_path, world=world, objective=objective).skipped == [9]
