from __future__ import annotations

import math

import pytest
import torch

from arcvideo.rollout.measure import Report, metrics

NAN = math.nan


def found(**changes: object) -> dict[str, float]:
    """Four completions of one grounding group and two of one multiple-choice group."""
    values = {
        "tasks": ["grounding"] * 4 + ["mcq"] * 2,
        "total": torch.tensor([0.0, 0.2, 0.6, 1.0, 1.0, 1.0]),
        "spread": torch.tensor([0.4] * 4 + [0.0] * 2),
        "parts": {
            "temporal_iou": torch.tensor([0.0, 0.2, 0.6, 1.0, NAN, NAN]),
            "mcq_accuracy": torch.tensor([NAN] * 4 + [1.0] * 2),
        },
        "failures": {"temporal_iou": torch.tensor([1.0, 0.0, 0.0, 0.0, NAN, NAN])},
        "lengths": torch.tensor([3.0, 5.0, 7.0, 9.0, 2.0, 4.0]),
        "finished": torch.tensor([True, True, True, False, True, True]),
        "seconds": {"encode": 0.5, "prefill": 1.0, "decode": 1.5, "rewards": 9.0},
    }
    report = Report(**(values | changes))  # type: ignore[arg-type]
    return metrics(report)


def test_rewards_over_all_completions_and_per_function() -> None:
    values = found()
    assert values["reward"] == pytest.approx(3.8 / 6)
    assert values["reward_std"] == pytest.approx(1.6 / 6)
    assert values["frac_reward_zero_std"] == pytest.approx(1 / 3)
    assert values["rewards/temporal_iou/mean"] == pytest.approx(0.45)
    assert values["rewards/temporal_iou/std"] == pytest.approx(float(torch.tensor([0.0, 0.2, 0.6, 1.0]).std()))
    assert values["rewards/mcq_accuracy/mean"] == 1.0
    assert values["rewards/temporal_iou/parse_failures"] == 0.25


def test_rewards_per_task() -> None:
    values = found()
    assert values["tasks/grounding/reward"] == pytest.approx(0.45)
    assert values["tasks/mcq/reward"] == 1.0
    assert values["tasks/mcq/frac_reward_zero_std"] == 1.0
    assert values["tasks/grounding/reward_std"] == pytest.approx(0.4)


def test_the_histogram_of_overlaps_adds_up() -> None:
    shares = {name: value for name, value in found().items() if name.startswith("iou_histogram/")}
    assert shares == {
        "iou_histogram/0": 0.25,
        "iou_histogram/0-0.3": 0.25,
        "iou_histogram/0.3-0.5": 0.0,
        "iou_histogram/0.5-0.7": 0.25,
        "iou_histogram/0.7-1": 0.25,
    }
    assert not any(name.startswith("iou") for name in found(parts={"mcq_accuracy": torch.ones(6)}))


def test_lengths_and_speed() -> None:
    values = found()
    assert values["completions/mean_length"] == 5.0
    assert (values["completions/min_length"], values["completions/max_length"]) == (2.0, 9.0)
    assert values["completions/mean_terminated_length"] == pytest.approx(4.2)
    assert values["completions/clipped_ratio"] == pytest.approx(1 / 6)
    assert values["rollout/tokens_per_second"] == pytest.approx(30 / 3.0)  # rewards are no part of sampling
    assert values["rollout/seconds/decode"] == 1.5
    assert "completions/mean_terminated_length" not in found(finished=torch.zeros(6, dtype=torch.bool))
