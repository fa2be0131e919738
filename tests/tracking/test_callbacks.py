"""Callbacks hear what a run does; whatever they do or fail at, the weights are the same."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.processes.ranks import World
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import RunnerSettings, ScheduleSettings
from arcvideo.tracking.callbacks import Callbacks, calling
from arcvideo.tracking.settings import LoggerSettings, logger_problems
from tests.runner.job import TRAIN, build_engine
from tests.runner.tiny import Rows, cross_entropy

HEARD: list[tuple[Any, ...]] = []


class Listener:
    """Notes everything, and meddles with all that it can reach."""

    def __init__(self) -> None:
        random.random()

    def begin(self, *, folder: Path, config: Mapping[str, Any]) -> None:
        HEARD.append(("begin", folder, dict(config)))
        config["stage"]["name"] = "mine"

    def step(self, values: Any) -> None:
        HEARD.append(("step", values["step"], values["train/loss"]))
        torch.manual_seed(99)
        values.clear()

    def checkpoint(self, path: Path, *, step: int) -> None:
        HEARD.append(("checkpoint", (path / "manifest.json").exists(), step))

    def evaluation(self, metrics: Mapping[str, float], *, step: int) -> None:
        HEARD.append(("evaluation", dict(metrics), step))

    def end(self, *, status: int) -> None:
        HEARD.append(("end", status))


class Broken:
    """Fails at every step, once by ending the process."""

    def step(self, values: Mapping[str, Any]) -> None:
        if values["step"]:
            raise RuntimeError("no disk")
        raise SystemExit(7)


@pytest.fixture(autouse=True)
def heard() -> None:
    HEARD.clear()


def run(folder: Path, *, world: World, names: list[str], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Train four steps; return the weights they came to."""
    engine = build_engine(world=world)
    with calling(names, folder=folder, config=config) as callbacks:
        Runner(
            engine=engine, source=Rows(), objective=cross_entropy, schedule=ScheduleSettings(), train=TRAIN,
            settings=RunnerSettings(steps=4, log_every=2, save_every=2, keep_last=4), folder=folder, identity="tiny",
            callbacks=callbacks,
        ).run()  # type: ignore[arg-type]  # fmt: skip
    return {name: value.detach().clone() for name, value in engine.model.named_parameters()}


def test_every_event_is_heard_and_no_weight_depends_on_it(
    tmp_path: Path, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [f"{__name__}:Listener", f"{__name__}:Broken"]
    config = {"stage": {"name": "sft"}}
    with_them = run(tmp_path / "with", world=world, names=names, config=config)
    without = run(tmp_path / "without", world=world, names=[], config=config)
    assert all(torch.equal(value, without[name]) for name, value in with_them.items())
    assert config == {"stage": {"name": "sft"}}
    assert HEARD[0] == ("begin", tmp_path / "with", {"stage": {"name": "mine"}})  # its own copy
    assert [event[1] for event in HEARD if event[0] == "step"] == [0, 1, 2, 3]
    assert [event[1:] for event in HEARD if event[0] == "checkpoint"] == [(True, 2), (True, 4)]
    assert HEARD[-1] == ("end", 0)
    said = capfd.readouterr().err
    assert said.count("Broken: step failed, the run goes on: SystemExit: 7") == 1
    assert "Broken: step failed 4 times in all" in said


def test_numbers_of_an_evaluation_are_told_as_one() -> None:
    callbacks = Callbacks({"listener": Listener()})
    callbacks.step({"step": 9, "train/loss": 1.0, "eval/mcq_accuracy": 0.5})
    assert HEARD == [("evaluation", {"mcq_accuracy": 0.5}, 10), ("step", 9, 1.0)]


@pytest.mark.parametrize(
    ("error", "status"), [(SystemExit(85), 85), (ValueError("bad"), 1), (KeyboardInterrupt(), 130)]
)
def test_the_end_is_told_however_it_comes(tmp_path: Path, error: BaseException, status: int) -> None:
    with pytest.raises(type(error)), calling([f"{__name__}:Listener"], folder=tmp_path, config={"stage": {}}):
        raise error
    assert HEARD[-1] == ("end", status)


def test_what_is_no_callback_is_told_before_a_run() -> None:
    (absent,) = logger_problems(LoggerSettings(callbacks=[f"{__name__}:Nothing"]))
    assert absent.startswith("logger.callbacks: ")
    assert "has no 'Nothing'" in absent
    assert logger_problems(LoggerSettings(callbacks=[f"{__name__}:Listener"])) == []
