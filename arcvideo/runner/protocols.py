"""What the loop asks of those it calls, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from arcvideo.objectives.loss import Loss
from arcvideo.types import Batch

Counts = dict[str, dict[str, int]]
"""Kind (planned, seen, quarantined) -> data source -> items."""


class BatchSource(Protocol):
    """Where batches come from: a data set, or rollouts of the policy (then it holds the policy itself)."""

    def batches(self, step: int) -> Sequence[Batch]:
        """This rank's micro-batches of optimizer step `step`; as many on every rank. A pure function of the step."""
        ...

    def state(self) -> Counts:
        """Items that this rank was handed so far; JSON-able."""
        ...

    def restore(self, state: Counts) -> None:
        """Continue counting from there."""
        ...


class Objective(Protocol):
    """What is minimised."""

    def __call__(self, logits: Tensor, batch: Batch) -> Loss:
        """Summed loss of one micro-batch; logits are (T, V)."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run leaves for the manifest."""

    steps: int
    seconds: float
    """Of this process, without what ran before a resume."""
    metrics: dict[str, float]
    """Of the last step."""
    skipped: list[int]
    """Steps refused for non-finite numbers or as spikes."""
    resumed_from: int
    """Steps that were already done when this process started."""
    liveness: dict[str, Any] = field(default_factory=dict)
    """LivenessReport as a dict; empty when switched off."""
    counts: Counts = field(default_factory=dict)
    """Items over all ranks, and from before a resume too."""
    wandb_id: str | None = None
    """Of the W&B run; None without W&B."""


def summed(parts: Sequence[Counts]) -> Counts:
    """The counts of all ranks together."""
    total: Counts = {}
    for part in parts:
        for kind, sources in part.items():
            for name, count in sources.items():
                row = total.setdefault(kind, {})
                # Beside counts a state may hold things of its own, under names that no two ranks share.
                row[name] = row.get(name, 0) + count if isinstance(count, int) else count
    return total
