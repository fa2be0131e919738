"""Cross entropy on the answers: the objective of every stage but GRPO."""

from __future__ import annotations

import torch
from torch import Tensor

from arcvideo.objectives.logprobs import token_logprobs
from arcvideo.objectives.loss import Loss
from arcvideo.objectives.settings import NextTokenSettings
from arcvideo.types import Batch


class NextToken:
    """Weighted cross entropy in fp32."""

    def __init__(self, settings: NextTokenSettings | None = None) -> None:
        self.settings = settings or NextTokenSettings()

    def __call__(self, logits: Tensor, batch: Batch) -> Loss:
        """Return summed loss of the batch.

        Args:
            logits: (T, V), the row of each target's position, any float dtype.
            batch: its target_ids and target_weights are read.
        """
        losses = -token_logprobs(logits, target_ids=batch.target_ids, temperature=1.0)
        total = (losses * batch.target_weights).sum()
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {}
        if self.settings.log_accuracy:
            with torch.no_grad():
                right = (logits.argmax(dim=-1) == batch.target_ids).sum().float()
            metrics["token_accuracy"] = (right, float(batch.target_ids.numel()))
        metrics["token_loss"] = (losses.detach().sum(), float(batch.target_ids.numel()))
        return Loss(total=total, metrics=metrics)
