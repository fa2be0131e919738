from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from arcvideo.objectives import OBJECTIVES, load_objective
from arcvideo.objectives.grpo import Grpo, advantages, completion_weights, grpo_loss, grpo_token_loss, kl_estimate
from arcvideo.objectives.next_token import NextToken
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.types import Batch, Segments


def make_batch(target_ids: list[int], *, weights: list[float], extra: dict[str, Tensor] | None = None) -> Batch:
    count = len(target_ids)
    return Batch(
        input_ids=torch.zeros(count, dtype=torch.int64),
        position_ids=torch.zeros(4, count, dtype=torch.int64),
        segments=Segments(starts=torch.tensor([0, count], dtype=torch.int32), parents=torch.tensor([-1])),
        media=(),
        target_positions=torch.arange(count),
        target_ids=torch.tensor(target_ids),
        target_weights=torch.tensor(weights),
        target_samples=torch.zeros(count, dtype=torch.int64),
        keys=("a/0",),
        tasks=("qa",),
        extra=extra or {},
    )


def test_next_token_sums_weighted_cross_entropy_in_fp32() -> None:
    logits = torch.randn(3, 7, dtype=torch.bfloat16)
    loss = NextToken()(logits, make_batch([1, 2, 3], weights=[1.0, 0.5, 0.0]))
    logp = logits.double().log_softmax(-1)
    assert float(loss.total) == pytest.approx(float(-logp[0, 1] - 0.5 * logp[1, 2]), rel=1e-5)
    assert loss.total.dtype == torch.float32
    assert loss.metrics["token_accuracy"][1] == 3.0


def test_micro_batches_add_up_to_the_whole() -> None:
    logits = torch.randn(4, 7)
    ids, weights = [1, 2, 3, 4], [1.0, 0.5, 0.25, 1.0]
    whole = NextToken()(logits, make_batch(ids, weights=weights)).total
    halves = [
        NextToken()(logits[i : i + 2], make_batch(ids[i : i + 2], weights=weights[i : i + 2])).total for i in (0, 2)
    ]
    torch.testing.assert_close(sum(halves), whole)


def test_a_target_without_weight_has_no_gradient() -> None:
    logits = torch.randn(2, 7, requires_grad=True)
    NextToken()(logits, make_batch([1, 2], weights=[1.0, 0.0])).total.backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().sum() > 0
    assert not logits.grad[1].any()


def test_advantages_of_equal_rewards_are_zero_and_groups_do_not_mix() -> None:
    rewards = torch.tensor([1.0, 1.0, 0.0, 10.0])
    groups = torch.tensor([0, 0, 1, 1])
    gains = advantages(rewards, groups=groups, scale_rewards="group")
    assert gains[:2].tolist() == [0.0, 0.0]
    assert gains[2:].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=1e-4)
    assert advantages(rewards, groups=groups, scale_rewards="none").tolist() == [0.0, 0.0, -5.0, 5.0]


def test_a_group_of_one_and_a_group_without_rewards_have_no_advantage() -> None:
    gains = advantages(torch.tensor([3.0, torch.nan, torch.nan]), groups=torch.tensor([0, 1, 1]), scale_rewards="group")
    assert gains.tolist() == [0.0, 0.0, 0.0]


def test_the_kl_of_a_collapsed_policy_stays_finite() -> None:
    logprobs = torch.tensor([-500.0, -1.0], requires_grad=True)
    parts = grpo_token_loss(
        logprobs,
        old_logprobs=logprobs.detach(),
        ref_logprobs=torch.tensor([-1.0, -500.0]),
        token_advantages=torch.ones(2),
        samples=torch.zeros(2, dtype=torch.int64),
        mask=torch.ones(2),
        settings=GrpoSettings(beta=0.1),
    )
    parts.loss.sum().backward()
    assert parts.loss.isfinite().all()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


def test_kl_estimators_agree_to_second_order_and_are_what_their_formulas_say() -> None:
    small, large = torch.tensor([1e-3], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    values = {name: float(kl_estimate(large, estimator=name)) for name in ("k1", "k2", "k3")}
    assert values == pytest.approx({"k1": -0.5, "k2": 0.125, "k3": math.exp(0.5) - 1.5})
    assert float(kl_estimate(small, estimator="k3")) == pytest.approx(5e-7, rel=1e-3)
    settings = GrpoSettings(beta=1.0, kl_estimator="k2")
    parts = grpo_token_loss(
        torch.zeros(1),
        old_logprobs=torch.zeros(1),
        ref_logprobs=torch.ones(1),
        token_advantages=torch.zeros(1),
        samples=torch.zeros(1, dtype=torch.int64),
        mask=torch.ones(1),
        settings=settings,
    )
    assert float(parts.loss) == 0.5


def test_cispo_asks_for_its_cap() -> None:
    with pytest.raises(ValueError, match=r"cispo needs grpo\.epsilon_high"):
        GrpoSettings(loss_type="cispo")


def test_a_masked_completion_keeps_its_share_of_the_divisor() -> None:
    settings = GrpoSettings(beta=0.0)
    lengths, counted = torch.tensor([2, 1]), torch.tensor([1.0, 0.0])
    samples = torch.tensor([0, 0, 1])
    common: dict[str, Any] = {"ref_logprobs": None, "samples": samples, "settings": settings, "mask": counted[samples]}
    loss = grpo_loss(
        torch.zeros(3),
        old_logprobs=torch.zeros(3),
        token_advantages=torch.ones(3),
        weights=completion_weights(lengths, counted=counted, loss_type="grpo")[samples],
        **common,
    )
    assert float(loss.total) == -1.0  # the first completion's mean alone, to be divided by two completions
    weights = {kind: completion_weights(lengths, counted=counted, loss_type=kind) for kind in ("grpo", "dapo", "bnpo")}
    assert {kind: value.tolist() for kind, value in weights.items()} == {
        "grpo": [0.5, 1.0],
        "dapo": [1.0, 0.0],
        "bnpo": [0.5, 0.0],
    }


def test_grpo_refuses_a_batch_that_was_not_rolled_out() -> None:
    with pytest.raises(ValueError, match="rollout source"):
        Grpo()(torch.zeros(1, 7), make_batch([1], weights=[1.0]))
    rolled = {"advantages": torch.zeros(1), "old_logprobs": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"grpo\.beta=0\.1 needs ref_logprobs"):
        Grpo()(torch.zeros(1, 7), make_batch([1], weights=[1.0], extra=rolled))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss_type", "ppo"),
        ("kl_estimator", "k4"),
        ("scale_rewards", "std"),
        ("importance_sampling_level", "word"),
        ("num_generations", 1),
        ("temperature", 0.0),
        ("top_p", 0.0),
        ("beta", -1.0),
    ],
)
def test_bad_grpo_settings_name_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"grpo\.{key}"):
        replace(GrpoSettings(), **{key: value})


def test_the_papers_rewards_are_used_when_none_are_named() -> None:
    assert GrpoSettings().reward_weights == {"mcq_accuracy": 1.0, "temporal_iou": 1.0}
    assert GrpoSettings(rewards={"format": 1.0}).reward_weights == {"format": 1.0}


def test_objectives_load_by_name_or_path() -> None:
    assert {name: load_objective(name).__name__ for name in OBJECTIVES} == {
        "next_token": "NextToken",
        "grpo": "Grpo",
        "dpo": "Dpo",
    }
    assert load_objective("arcvideo.objectives.grpo:Grpo") is Grpo
    for name in ("kto", "arcvideo.objectives.grpo:Nothing"):
        with pytest.raises(ValueError, match="objective="):
            load_objective(name)


def test_settings_do_not_import_torch() -> None:
    rooms = (
        "arcvideo.objectives, arcvideo.objectives.settings, arcvideo.sampling.settings, arcvideo.evaluation.settings"
    )
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
