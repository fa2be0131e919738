"""Our advantages, loss and gradients against TRL's own code at the pinned version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from arcvideo.objectives.grpo import Grpo, advantages, completion_weights
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.types import Batch, Segments
from tests.objectives import oracle

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return oracle.trainer(tmp_path_factory.mktemp("trl"))


def flat_batch(
    rolled: oracle.Rollout, *, settings: GrpoSettings, kept: Tensor | None = None, counted: Tensor | None = None
) -> Batch:
    """The rollout as our flat table of targets: of the tokens `kept` (n, C), completions `counted` (n,) count."""
    kept = rolled.mask.bool() if kept is None else kept
    counted = torch.ones(oracle.COMPLETIONS) if counted is None else counted
    samples = torch.arange(oracle.COMPLETIONS)[:, None].expand_as(kept)[kept]
    weights = completion_weights(kept.sum(1), counted=counted, loss_type=settings.loss_type)
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(
        input_ids=nothing,
        position_ids=nothing.expand(4, 0),
        segments=Segments(starts=torch.zeros(1, dtype=torch.int32), parents=nothing.int()),
        media=(),
        target_positions=nothing,
        target_ids=rolled.completion_ids[kept],
        target_weights=weights[samples],
        target_samples=samples,
        keys=tuple(map(str, range(oracle.COMPLETIONS))),
        tasks=("mcq",) * oracle.COMPLETIONS,
        extra={
            "advantages": rolled.advantages,
            "old_logprobs": rolled.old[kept],
            "ref_logprobs": rolled.ref[kept],
            "loss_mask": counted[samples],
        },
    )


BASE = GrpoSettings(temperature=oracle.TEMPERATURE, max_completion_length=oracle.MAX_COMPLETION, beta=0.1, epsilon=0.2)
VARIANTS = {
    "grpo": BASE,
    "bnpo": replace(BASE, loss_type="bnpo"),
    "dr_grpo": replace(BASE, loss_type="dr_grpo"),
    "dapo": replace(BASE, loss_type="dapo", epsilon_high=0.28),
    "gspo": replace(BASE, importance_sampling_level="sequence", epsilon=0.05, epsilon_high=0.08, beta=0.0),
    "sequence_with_kl": replace(BASE, importance_sampling_level="sequence"),
    "bias_corrected_kl": replace(BASE, use_bias_correction_kl=True),
    "reference_free": replace(BASE, beta=0.0),
    "clip_higher": replace(BASE, epsilon_high=0.5),
    "cispo": replace(BASE, loss_type="cispo", epsilon_high=1.1, beta=0.0),
    "cispo_with_kl": replace(BASE, loss_type="cispo", epsilon_high=1.1),
}


def compare(made: Any, *, settings: GrpoSettings, truncated: Sequence[int] = ()) -> None:
    """Loss, gradients and metrics of one rollout under TRL and under us; `truncated` completions are masked out."""
    whole = oracle.rollout(drift=0.3)
    counted = torch.ones(oracle.COMPLETIONS)
    counted[list(truncated)] = 0.0
    rolled = replace(whole, mask=whole.mask * counted[:, None].long())
    made.model.zero_grad()
    made._metrics["train"].clear()
    expected = oracle.trl_loss(made, rolled, settings=settings)
    expected.backward()
    gradients = {key: value.grad.clone() for key, value in made.model.named_parameters()}

    made.model.zero_grad()
    kept = whole.mask.bool()
    logits = oracle.policy_logits(made.model, prompt_ids=rolled.prompt_ids, completion_ids=rolled.completion_ids)[kept]
    batch = flat_batch(whole, settings=settings, kept=kept, counted=counted)
    loss = Grpo(settings)(logits, batch)
    mean = loss.total / batch.target_weights.sum()
    mean.backward()

    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-7)
    largest = max(float(value.abs().max()) for value in gradients.values())
    for key, value in made.model.named_parameters():
        torch.testing.assert_close(
            value.grad, gradients[key], rtol=1e-5, atol=1e-6 * largest, msg=lambda text, key=key: f"{key}: {text}"
        )
    for metric, (total, count) in loss.metrics.items():
        per_sequence = "clip_ratio" in metric and settings.importance_sampling_level == "sequence"
        if metric in made._metrics["train"] and not per_sequence:  # TRL then counts sequences, we count tokens
            assert float(total / count) == pytest.approx(made._metrics["train"][metric][-1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_gradients_and_metrics_equal_trl(made: Any, name: str) -> None:
    compare(made, settings=VARIANTS[name])


@pytest.mark.parametrize("name", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "gspo"])
def test_masked_truncated_completions_equal_trl(made: Any, name: str) -> None:
    compare(made, settings=VARIANTS[name], truncated=[0, 4])


def test_the_compared_variants_do_clip(made: Any) -> None:
    rolled = oracle.rollout(drift=0.3)
    logits = oracle.policy_logits(made.model, prompt_ids=rolled.prompt_ids, completion_ids=rolled.completion_ids)
    loss = Grpo(BASE)(logits[rolled.mask.bool()], flat_batch(rolled, settings=BASE))
    low, high = (loss.metrics[f"clip_ratio/{side}_mean"][0] for side in ("low", "high"))
    assert low > 0
    assert high > 0


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("missing", [False, True])
def test_advantages_equal_trl(made: Any, scale_rewards: str, missing: bool) -> None:
    rewards = torch.tensor([[1.0, 0.2], [0.0, 0.4], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    if missing:
        rewards[1] = float("nan")  # no reward applies
        rewards[3, 0] = float("nan")  # one of the two applies
    summed = rewards.nansum(1).masked_fill(rewards.isnan().all(1), float("nan"))
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    ours = advantages(summed, groups=groups, scale_rewards=scale_rewards)
    torch.testing.assert_close(
        ours, oracle.trl_advantages(made, rewards, scale_rewards=scale_rewards), rtol=1e-5, atol=1e-6
    )
