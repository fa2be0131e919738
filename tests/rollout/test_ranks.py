"""GRPO over real ranks (gloo): the same rollouts, losses and weights whatever their number, under every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rollout.job import run_ranks

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[dict[str, Any]]:
    tasks = [
        {"kind": "train", "folder": str(folder / "whole")},
        {"kind": "train", "folder": str(folder / "cut"), "die_at": 1},
        {"kind": "train", "folder": str(folder / "cut"), "die_at": 3},
        {"kind": "train", "folder": str(folder / "cut")},
        {"kind": "train", "folder": str(folder / "moved"), "die_at": 3},
    ]
    return run_ranks(tasks, ranks=1, results=folder / "alone.json")


@pytest.fixture(scope="module")
def together(folder: Path, alone: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tasks = [{"kind": "train", "folder": str(folder / f"zero{stage}"), "stage": stage} for stage in STAGES]
    tasks += [
        {"kind": "gradient", "stage": stage, "checkpoint_layers": layers}
        for stage in STAGES
        for layers in (False, True)
    ]
    tasks.append({"kind": "train", "folder": str(folder / "moved")})
    return run_ranks(tasks, ranks=2, results=folder / "together.json")


@pytest.mark.slow
def test_a_run_killed_between_two_updates_of_a_rollout_continues_bit_for_bit(alone: list[dict[str, Any]]) -> None:
    whole, cut = alone[0], alone[3]
    assert cut["curve"] == whole["curve"]
    assert cut["weights"] == whole["weights"]
    assert cut["seen"] == whole["seen"]
    assert len(whole["curve"]) == 4


@pytest.mark.slow
def test_a_rollout_that_one_rank_began_is_finished_by_two(
    alone: list[dict[str, Any]], together: list[dict[str, Any]]
) -> None:
    whole, moved = alone[0], together[-1]
    for here, there in zip(moved["curve"], whole["curve"], strict=True):
        assert here == pytest.approx(there, rel=2e-4, abs=2e-6)
    assert moved["curve"][:3] == whole["curve"][:3]
    assert moved["weights"] == pytest.approx(whole["weights"], rel=1e-4, abs=1e-3)
    assert moved["seen"] == whole["seen"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_equal_one(alone: list[dict[str, Any]], together: list[dict[str, Any]], stage: int) -> None:
    one, two = alone[0], together[stage]
    for here, there in zip(two["curve"], one["curve"], strict=True):
        assert here == pytest.approx(there, rel=2e-4, abs=2e-6)
        assert here[2:4] == there[2:4]  # the same completions, so the same rewards
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-4, abs=1e-3)
    assert two["seen"] == one["seen"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2 * len(STAGES)))
def test_the_gradient_of_shared_rows_equals_that_of_full_copies(together: list[dict[str, Any]], number: int) -> None:
    found = together[len(STAGES) + number]
    assert found["copies"] < 1e-6
    assert found["exact"] < 1e-6
    # single tensors: sharing must not be farther from the float64 truth than full copies are
    assert found["worst_tensor"] < max(1e-6, 1.5 * found["worst_tensor_of_copies"])
