"""What an objective returns: a summed loss and summed metrics; only the Runner divides."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss before division. The Runner divides `total` by the sum of target_weights over ranks and micro-batches."""

    total: Tensor
    """() float32: sum over targets of weight times loss; carries the gradient."""
    metrics: dict[str, tuple[Tensor | float, Tensor | float]] = field(default_factory=dict)
    """Name -> (sum, count), detached; the reported value is sum over count, both over ranks and micro-batches."""
