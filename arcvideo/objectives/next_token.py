"""Cross entropy on the answers: the objective of every stage but GRPO."""

from __future__ import annotations

from torch import Tensor

from arcvideo.objectives.loss import Loss
from arcvideo.objectives.scores import Ask, Scores, scores_in
from arcvideo.objectives.settings import NextTokenSettings
from arcvideo.types import Batch


class NextToken:
    """Weighted cross entropy in fp32."""

    def __init__(self, settings: NextTokenSettings | None = None) -> None:
        self.settings = settings or NextTokenSettings()

    def ask(self, batch: Batch) -> Ask:
        """Return what the loss and its metrics need."""
        return Ask(ids=batch.target_ids, figures=("right",) if self.settings.log_accuracy else ())

    def __call__(self, given: Tensor | Scores, batch: Batch) -> Loss:
        """Return summed loss of the batch.

        Args:
            given: scores, or (T, V) logits, the row of each target's position, any float dtype.
            batch: its target_ids and target_weights are read.
        """
        scores = scores_in(given, ask=self.ask(batch))
        losses = -scores.logprobs
        total = (losses * batch.target_weights).sum()
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {}
        if scores.right is not None:
            metrics["token_accuracy"] = (scores.right.sum().float(), float(batch.target_ids.numel()))
        metrics["token_loss"] = (losses.detach().sum(), float(batch.target_ids.numel()))
        return Loss(total=total, metrics=metrics)
