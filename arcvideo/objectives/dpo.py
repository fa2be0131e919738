"""Direct preference optimisation on pairs of answers, https://arxiv.org/abs/2305.18290.

Names and formulas are those of TRL's DPOTrainer 1.16 (`_compute_loss`); the tests compare loss, gradients and metrics
with it.
Shapes: T target tokens, V vocabulary, P pairs; samples 2p and 2p + 1 of a batch are the two answers of pair p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from arcvideo.objectives.loss import Loss
from arcvideo.objectives.scores import Ask, Scores, scores_in
from arcvideo.objectives.settings import DpoSettings
from arcvideo.types import Batch


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """What the loss of pairs depends on, each (P, 2): chosen, rejected."""

    logps: Tensor
    """float32, summed over the answer's tokens, under the policy; carries the gradient."""
    ref_logps: Tensor
    """The same under the reference."""
    lengths: Tensor
    """float32, tokens of the answer."""

    @property
    def logratios(self) -> Tensor:
        """(P, 2) log of policy over reference."""
        return self.logps - self.ref_logps


def pair_losses(scores: PairScores, *, settings: DpoSettings) -> Tensor:
    """Return (P,) loss of each pair.

    sigmoid: the paper's. ipo: squared distance of the per-token margin to 1 / (2 beta), https://arxiv.org/abs/2310.12036.
    hinge: https://arxiv.org/abs/2305.10425. robust: unbiased when a share label_smoothing of the labels is flipped,
    https://arxiv.org/abs/2403.00409. apo_zero: https://arxiv.org/abs/2408.06266.
    """
    chosen, rejected = scores.logratios.unbind(1)
    margin = settings.beta * (chosen - rejected)
    if settings.loss_type == "sigmoid":
        return -F.logsigmoid(margin)
    if settings.loss_type == "hinge":
        return torch.relu(1 - margin)
    if settings.loss_type == "ipo":
        per_token = scores.logratios / scores.lengths.clamp(min=1)
        return (per_token[:, 0] - per_token[:, 1] - 1 / (2 * settings.beta)) ** 2
    if settings.loss_type == "robust":
        flipped = settings.label_smoothing
        kept = -(1 - flipped) * F.logsigmoid(margin) + flipped * F.logsigmoid(-margin)
        return kept / (1 - 2 * flipped)
    if settings.loss_type == "apo_zero":
        return 1 - torch.sigmoid(settings.beta * chosen) + torch.sigmoid(settings.beta * rejected)
    raise ValueError(f"dpo.loss_type={settings.loss_type!r} is unknown")


class Dpo:
    """The objective of batches of pairs whose reference log-probabilities a `ReferenceSource` put beside them."""

    def __init__(self, settings: DpoSettings | None = None) -> None:
        self.settings = settings or DpoSettings()

    def ask(self, batch: Batch) -> Ask:
        """Return what the loss and its metrics need."""
        return Ask(ids=batch.target_ids, figures=("right", "entropy", "mean_logit"))

    def __call__(self, given: Tensor | Scores, batch: Batch) -> Loss:
        """Return summed loss of one packed row.

        Args:
            given: scores, or (T, V) logits at the targets.
            batch: of a source with pairs; extra holds `ref_logprobs` (T,).
        """
        if "ref_logprobs" not in batch.extra:
            raise ValueError("objective dpo needs batch.extra['ref_logprobs']; use a reference source")
        scored = scores_in(given, ask=self.ask(batch))
        tokens = scored.logprobs
        if len(batch.keys) % 2:  # a row without weight, in place of pairs whose media could not be read
            return Loss(total=(tokens * batch.target_weights).sum())
        weights = _per_pair(batch.target_weights, batch=batch).sum(dim=1)
        scores = PairScores(
            logps=_per_pair(tokens, batch=batch),
            ref_logps=_per_pair(batch.extra["ref_logprobs"], batch=batch),
            lengths=_per_pair(torch.ones_like(tokens), batch=batch).detach(),
        )
        total = (pair_losses(scores, settings=self.settings) * weights).sum()
        return Loss(total=total, metrics=_metrics(scored, batch=batch, scores=scores, settings=self.settings))


def _per_pair(values: Tensor, *, batch: Batch) -> Tensor:
    """Return (P, 2) sums over the tokens of each answer of (T,) values."""
    sums = values.new_zeros(len(batch.keys)).index_add(0, batch.target_samples, values)
    return sums.view(-1, 2)


@torch.no_grad()
def _metrics(
    scored: Scores, *, batch: Batch, scores: PairScores, settings: DpoSettings
) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Return sums and counts under TRL's names."""
    pairs, count = float(len(scores.logps)), float(len(batch.target_ids))
    rewards = settings.beta * scores.logratios
    margins = rewards[:, 0] - rewards[:, 1]
    chosen = (batch.target_samples % 2 == 0).float()
    mean_logits, right, entropy = scored.mean_logit, scored.right, scored.entropy
    assert mean_logits is not None
    assert right is not None
    assert entropy is not None
    return {
        "rewards/chosen": (rewards[:, 0].sum(), pairs),
        "rewards/rejected": (rewards[:, 1].sum(), pairs),
        "rewards/accuracies": ((margins > 0).float().sum(), pairs),
        "rewards/margins": (margins.sum(), pairs),
        "logps/chosen": (scores.logps[:, 0].sum(), pairs),
        "logps/rejected": (scores.logps[:, 1].sum(), pairs),
        "logits/chosen": ((mean_logits * chosen).sum(), chosen.sum()),
        "logits/rejected": ((mean_logits * (1 - chosen)).sum(), (1 - chosen).sum()),
        "mean_token_accuracy": ((right * chosen).sum(), chosen.sum()),
        "entropy": (entropy.sum(), count),
    }
