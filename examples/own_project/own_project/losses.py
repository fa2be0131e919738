"""An objective: cross entropy in which easy tokens count less."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from arcvideo.objectives.loss import Loss
from arcvideo.types import Batch


class Focal:
    """Focal loss of the next token."""

    def __init__(self, settings: Any, *, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, logits: Tensor, batch: Batch) -> Loss:
        """Return the summed loss of a batch."""
        losses = F.cross_entropy(logits.float(), batch.target_ids, reduction="none")
        easy = (-losses.detach()).exp()
        total = ((1 - easy) ** self.gamma * losses * batch.target_weights).sum()
        return Loss(total=total, metrics={"easy": (easy.sum(), float(len(easy)))})
