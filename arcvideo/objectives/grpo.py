"""Group-relative policy optimisation: advantages, token log-probabilities and the clipped loss, all pure functions.

Names and formulas are those of TRL's GRPOTrainer 1.16 (`_generate_and_score_completions`, `_compute_loss`); the tests
drive that trainer as the oracle. Differences, all deliberate: completions lie in a flat table of T targets instead of
a padded rectangle, the log-ratio of the KL is clamped, and the division is the Runner's.

Shapes: T target tokens, V vocabulary, n completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arcvideo.objectives.agreement import agreeing, gap_pairs, judged
from arcvideo.objectives.loss import Loss
from arcvideo.objectives.scores import Ask, Scores, scores_in
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.types import Batch

STD_EPSILON = 1e-4
"""Added to the std of rewards, as in TRL."""
MAX_LOG_RATIO = 20.0
"""Bound of log(ref / policy) inside the KL: exp of more overflows (NeMo-RL issue 874)."""


def group_std(rewards: Tensor, *, groups: Tensor) -> Tensor:
    """Return unbiased std of each completion's group, (n,); NaN rewards are left out, a group of one has 0."""
    scored, values, mean, count = _centred(rewards, groups=groups)
    squares = torch.where(scored, (values - mean) ** 2, torch.zeros_like(values))
    variance = _group_sum(squares, groups=groups) / (count - 1).clamp(min=1)
    return variance.sqrt()


def advantages(rewards: Tensor, *, groups: Tensor, scale_rewards: str) -> Tensor:
    """Return advantage of each completion over the mean of its group, (n,) float32.

    Args:
        rewards: (n,) float; NaN where no reward applies, which gives advantage 0 and no share in the mean.
        groups: (n,) int64, which prompt each completion answers.
        scale_rewards: what to divide by: "group" std, "batch" std, or "none".
    """
    scored, values, mean, _ = _centred(rewards, groups=groups)
    centred = torch.where(scored, values - mean, torch.zeros_like(values))
    if scale_rewards == "none":
        return centred
    if scale_rewards == "group":
        return centred / (group_std(rewards, groups=groups) + STD_EPSILON)
    if scale_rewards == "batch":
        return centred / (group_std(rewards, groups=torch.zeros_like(groups)) + STD_EPSILON)
    raise ValueError(f"grpo.scale_rewards={scale_rewards!r} is unknown; use group, batch or none")


def _centred(rewards: Tensor, *, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scored = ~torch.isnan(rewards)
    values = torch.where(scored, rewards, torch.zeros_like(rewards)).float()
    count = _group_sum(scored.float(), groups=groups)
    return scored, values, _group_sum(values, groups=groups) / count.clamp(min=1), count


def _group_sum(values: Tensor, *, groups: Tensor) -> Tensor:
    """Sum of each element's group, at each element."""
    sums = values.new_zeros(int(groups.max()) + 1 if groups.numel() else 0).index_add(0, groups, values)
    return sums[groups]


def completion_weights(lengths: Tensor, *, counted: Tensor, loss_type: str) -> Tensor:
    """Return (n,) float32 weight of each token of each completion, so that the Runner's one division is the variant's
    average.

    grpo: mean over the tokens of a completion, then over completions. dr_grpo: the same divisor, the number of
    completions (`grpo_loss` supplies 1/max_completion_length). dapo, cispo: mean over all tokens of the step.
    bnpo: mean over the tokens of this micro-batch, then over micro-batches.

    Args:
        lengths: (n,) tokens of each completion, at least 1.
        counted: (n,) float32, 0 for completions that do not count. As in TRL a masked completion still counts as a
            completion (grpo, dr_grpo), its tokens do not count as tokens (dapo, bnpo).
        loss_type: grpo, bnpo, dr_grpo, dapo or cispo.
    """
    if loss_type in ("grpo", "dr_grpo"):
        return 1.0 / lengths.float()
    if loss_type in ("dapo", "cispo"):
        return counted.float()
    if loss_type == "bnpo":
        return counted / (counted * lengths).sum().clamp(min=1)
    raise ValueError(f"grpo.loss_type={loss_type!r} is unknown; use grpo, bnpo, dr_grpo, dapo or cispo")


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """Per-token parts of the loss, each (T,) float32."""

    loss: Tensor
    """Clipped policy loss plus beta times KL; carries the gradient."""
    kl: Tensor
    """Estimate of KL(policy || reference), detached; zeros when beta is 0."""
    clipped_low: Tensor
    """1 where the ratio fell below the clip range and the advantage is negative."""
    clipped_high: Tensor
    """1 where the ratio rose above the clip range and the advantage is positive."""
    ratio: Tensor
    """Importance ratio, detached."""


def grpo_token_loss(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    token_advantages: Tensor,
    samples: Tensor,
    mask: Tensor,
    settings: GrpoSettings,
) -> TokenLoss:
    """Return the loss of every token, before any average.

    Args:
        logprobs: (T,) under the policy, with gradient.
        old_logprobs: (T,) under the policy that sampled.
        ref_logprobs: (T,) under the parent; may be None when beta is 0.
        token_advantages: (T,) advantage of each token's completion.
        samples: (T,) int64, completion of each token; read by sequence-level importance sampling.
        mask: (T,) float32, 0 for tokens of completions that do not count.
        settings: clip range, beta and importance sampling level.
    """
    log_ratio = logprobs - old_logprobs
    if settings.importance_sampling_level == "sequence":  # GSPO, https://arxiv.org/abs/2507.18071
        length = _group_sum(mask, groups=samples).clamp(min=1)
        log_ratio = _group_sum(log_ratio * mask, groups=samples) / length
    ratio = log_ratio.exp()
    low, high = 1 - settings.epsilon, 1 + settings.clip_high
    if settings.loss_type == "cispo":  # https://arxiv.org/abs/2506.13585; TRL caps the ratio itself
        low, high = 0.0, settings.clip_high
        loss = -ratio.clamp(max=high).detach() * token_advantages * logprobs
    else:
        loss = -torch.min(ratio * token_advantages, ratio.clamp(low, high) * token_advantages)
    kl = torch.zeros_like(logprobs)
    if settings.beta != 0:
        if ref_logprobs is None:
            raise ValueError(
                f"grpo.beta={settings.beta} needs ref_logprobs in the batch; set grpo.beta=0 to train without"
            )
        kl = kl_estimate(ref_logprobs - logprobs, estimator=settings.kl_estimator)
        if settings.use_bias_correction_kl:  # https://arxiv.org/abs/2512.02556
            kl = kl * ratio
        loss = loss + settings.beta * kl
    return TokenLoss(
        loss=loss,
        kl=kl.detach(),
        clipped_low=((ratio < low) & (token_advantages < 0)).float(),
        clipped_high=((ratio > high) & (token_advantages > 0)).float(),
        ratio=ratio.detach(),
    )


def kl_estimate(difference: Tensor, *, estimator: str) -> Tensor:
    """Return per-token estimate of KL(policy || reference), http://joschu.net/blog/kl-approx.html.

    As a loss k2 and k3 pull towards the reference; the gradient of k1 is zero on average, so it only adds noise to
    fresh completions, and is meant for comparison with others' curves.

    Args:
        difference: (T,) log-prob of the reference minus that of the policy.
        estimator: k1, k2 or k3.
    """
    difference = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return -difference
    return difference**2 / 2 if estimator == "k2" else difference.exp() - difference - 1


def grpo_loss(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    token_advantages: Tensor,
    samples: Tensor,
    weights: Tensor,
    settings: GrpoSettings,
    mask: Tensor | None = None,
) -> Loss:
    """Return summed loss over a flat table of completion tokens; divide by `weights.sum()` over the step.

    Args:
        weights: (T,) from `completion_weights` for the same loss_type.
        mask: (T,) float32; 0 takes a token out of the loss but leaves its weight in the divisor, as TRL does with
            truncated completions. None: all ones.
        logprobs, old_logprobs, ref_logprobs, token_advantages, samples, settings: as in `grpo_token_loss`.
    """
    mask = torch.ones_like(weights) if mask is None else mask
    tokens = grpo_token_loss(
        logprobs,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        token_advantages=token_advantages,
        samples=samples,
        mask=mask,
        settings=settings,
    )
    numerator = weights
    if settings.loss_type == "dr_grpo":  # https://arxiv.org/abs/2503.20783: a constant instead of the length
        numerator = torch.full_like(weights, 1.0 / settings.max_completion_length)
    total = (tokens.loss * numerator * mask).sum()
    count = mask.sum()
    shares = {"importance_ratio": tokens.ratio}
    if settings.loss_type == "cispo":
        shares["cispo_clip_ratio"] = tokens.clipped_high
    else:
        shares["clip_ratio/low_mean"] = tokens.clipped_low
        shares["clip_ratio/high_mean"] = tokens.clipped_high
        shares["clip_ratio/region_mean"] = tokens.clipped_low + tokens.clipped_high
    if settings.beta != 0:
        shares["kl"] = tokens.kl
    return Loss(total=total, metrics={name: ((value * mask).sum().detach(), count) for name, value in shares.items()})


class Grpo:
    """The objective of a batch that a `RolloutSource` made."""

    def __init__(self, settings: GrpoSettings | None = None) -> None:
        self.settings = settings or GrpoSettings()

    def ask(self, batch: Batch) -> Ask:
        """Return what the loss and its metrics need."""
        return Ask(ids=batch.target_ids, temperature=self.settings.temperature, figures=("entropy",))

    def __call__(self, given: Tensor | Scores, batch: Batch) -> Loss:
        """Return summed loss of one packed row of groups.

        Without `old_logprobs` the policy is still the one that sampled: the old log-probabilities are those of this
        very forward, and tokens about which it and the sampler disagree are left out and counted for `judge`.

        Args:
            given: scores, or (T, V) logits at the targets.
            batch: extra holds `advantages` (samples,), `old_logprobs` or `sampled_logprobs` (T,), `ref_logprobs` (T,)
                unless beta is 0, and optionally `loss_mask` (T,).
        """
        settings, extra = self.settings, batch.extra
        missing = [name for name in ("advantages", "old_logprobs") if name not in extra]
        if missing and not {"advantages", "sampled_logprobs"} <= set(extra):
            raise ValueError(
                f"objective grpo needs batch.extra {missing}; use a rollout source, not a plain data source"
            )
        scores = scores_in(given, ask=self.ask(batch))
        logprobs, entropy = scores.logprobs, scores.entropy
        assert entropy is not None
        mask = extra.get("loss_mask", torch.ones_like(batch.target_weights))
        old, gaps = extra.get("old_logprobs"), {}
        if old is None:
            old = logprobs.detach()
            gap = (old - extra["sampled_logprobs"]).abs()
            mask, gaps = mask * agreeing(gap, settings=settings), gap_pairs(gap, settings=settings)
        loss = grpo_loss(
            logprobs,
            old_logprobs=old,
            ref_logprobs=extra.get("ref_logprobs"),
            token_advantages=extra["advantages"][batch.target_samples],
            samples=batch.target_samples,
            weights=batch.target_weights,
            settings=settings,
            mask=mask,
        )
        return Loss(total=loss.total, metrics={**loss.metrics, **gaps, "entropy": ((entropy * mask).sum(), mask.sum())})

    def judge(self, pairs: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
        """Return further metrics of a step, or refuse it before the weights move; see `agreement.judged`.

        Args:
            pairs: of each rank, metric -> [sum, count] over its micro-batches.

        Raises:
            ValueError: sampler and trainer disagree about more tokens than may.
        """
        return judged(pairs, settings=self.settings)
