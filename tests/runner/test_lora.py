"""Stages that train adapters: every ZeRO stage, resume, ranks, what stays frozen, what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arcvideo.model.disk.lora import add_adapters
from arcvideo.processes.ranks import World
from arcvideo.runner.optimizer import peak_lrs
from arcvideo.runner.settings import OptimizerSettings
from arcvideo.runner.trainable import module_of, table_text, train_only, trainable_table
from tests.runner.adapters import LORA, TRAINED, on_two_ranks, train_adapters
from tests.runner.tiny import Tiny


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, world: World) -> dict[str, Any]:
    """A straight run under ZeRO 0."""
    return train_adapters(tmp_path_factory.mktemp("plain"), world=world)


def close(one: dict[str, Any], other: dict[str, Any]) -> None:
    for (step, loss, norm), (step2, loss2, norm2) in zip(one["curve"], other["curve"], strict=True):
        assert step == step2
        assert (loss, norm) == pytest.approx((loss2, norm2), rel=1e-6)
    assert one["sum"] == pytest.approx(other["sum"], rel=1e-4, abs=1e-4)


def test_only_adapters_and_whole_modules_learn_and_the_rest_keeps_its_bits(plain: dict[str, Any]) -> None:
    assert plain["frozen"]
    assert plain["names"]
    assert plain["gradients"] == ["audio_projector", "llm.lora", "vision_projector"]
    assert plain["curve"][-1][1] < plain["curve"][0][1]
    fresh = {name: float(tensor.detach().double().sum()) for name, tensor in Tiny().named_parameters()}
    moved = {name for name in fresh if fresh[name] != plain["sum"][name]}
    assert moved == {
        *(f"language_model.layers.{layer}.weight" for layer in (0, 1)),
        *(f"vision_model.perceive.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")),
        *(f"mlp2.{kind}" for kind in ("weight", "bias")),
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_adapters_learn_the_same_under_every_zero_stage(
    tmp_path: Path, world: World, plain: dict[str, Any], stage: int
) -> None:
    other = train_adapters(tmp_path, world=world, stage=stage)
    close(other, plain)
    assert other["frozen"]


@pytest.mark.parametrize(
    ("stage", "precision", "dropout"),
    [(0, "fp32", 0.5), (2, "fp32", 0.0), pytest.param(3, "bf16", 0.0, marks=pytest.mark.slow)],
)
def test_a_resumed_run_has_the_bits_of_a_straight_run(
    tmp_path: Path, world: World, stage: int, precision: str, dropout: float
) -> None:
    how: dict[str, Any] = {"world": world, "stage": stage, "precision": precision, "dropout": dropout}
    straight = train_adapters(tmp_path / "straight", **how)
    assert train_adapters(tmp_path / "cut", die_at=5, **how) == {}
    assert train_adapters(tmp_path / "cut", **how) == straight


def test_dropout_reaches_the_adapters(tmp_path: Path, world: World, plain: dict[str, Any]) -> None:
    assert train_adapters(tmp_path, world=world, dropout=0.5)["curve"] != plain["curve"]


@pytest.mark.slow
def test_two_ranks_equal_one_and_resume_exactly(tmp_path: Path, plain: dict[str, Any]) -> None:
    runs = [("two", 0, None), ("two", 2, None), ("two", 3, None), ("cut", 3, 3), ("cut", 3, None)]
    tasks = [{"folder": str(tmp_path / f"{name}{stage}"), "stage": stage, "die_at": end} for name, stage, end in runs]
    *straight, died, resumed = on_two_ranks(tasks, results=tmp_path / "results.json")
    assert died == {}
    assert resumed == straight[-1]
    for result in straight:
        assert result["frozen"]
        close(result, plain)


def test_adapters_have_the_learning_rate_of_their_module(plain: dict[str, Any]) -> None:
    assert plain["lrs"]["llm.lora"] == pytest.approx(2 * plain["lrs"]["vision_projector"])


def test_the_table_shows_adapters_beside_what_they_sit_on() -> None:
    model = Tiny()
    add_adapters(model, settings=LORA, prefixes=("language_model.",))
    train_only(model, TRAINED)
    rates = peak_lrs(model.named_parameters(), settings=OptimizerSettings(lr=1e-3, lr_factors={"llm": 0.5}))
    rows = {row.module: row for row in trainable_table(model, lrs=rates)}
    adapters = sum(value.numel() for name, value in model.named_parameters() if module_of(name) == "llm.lora")
    assert (rows["llm"].trained, rows["llm.lora"].trained) == (False, True)
    assert rows["llm.lora"].parameters == adapters == 2 * 2 * (16 + 16)
    assert rows["llm.lora"].lrs == (5e-4,)
    text = table_text(list(rows.values()))
    assert "llm.lora                          128  yes     0.0005" in text
    assert text.splitlines()[-1].endswith("learn")
