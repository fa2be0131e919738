"""What `forward` returns, and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from arcvideo.objectives.logprobs import token_logprobs


@dataclass
class ArcVideoOutput(ModelOutput):
    """Shapes: B batch, L tokens, T targets, D text width, V vocabulary."""

    loss: Tensor | None = None
    """Scalar mean cross-entropy; only with `labels`."""
    logits: Tensor | None = None
    """(T, V) at the targets asked for, else (L, V) of a packed row or (B, L, V) of a batch."""
    scores: Tensor | None = None
    """(1 + n, T) log-probabilities of targets and figures beside them; only with `ask`, and then no logits."""
    past_key_values: Any = None
    """The cache that was passed in or made by `use_cache`."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The embeddings, then each layer's output, the last one normed; only with `output_hidden_states`."""
    attentions: tuple[Tensor, ...] | None = None
    """Each layer's weights (B, H, L, cached + L); only with `output_attentions`."""
    last_hidden_state: Tensor | None = None
    """(L, D) or (B, L, D), after the last norm."""


@dataclass
class Trace:
    """What a forward pass is asked to keep."""

    hidden: list[Tensor] | None = None
    """The embeddings, then each layer's output, the last one normed; (..., L, D). None when they are not asked for."""
    attentions: list[Tensor] | None = None
    """Each layer's attention weights (B, H, Q, K); None when they are not asked for."""

    def keep(self, hidden: Tensor) -> None:
        """Keep one more hidden state, if they are asked for."""
        if self.hidden is not None:
            self.hidden.append(hidden)


def seen_states(trace: Trace | None) -> dict[str, Any]:
    """Return the fields of `ArcVideoOutput` that a trace fills."""
    seen = trace or Trace()
    return {
        "hidden_states": None if seen.hidden is None else tuple(seen.hidden),
        "attentions": None if seen.attentions is None else tuple(seen.attentions),
    }


def cross_entropy(logits: Tensor, targets: Tensor, *, count: Tensor | int | None = None) -> Tensor:
    """Return the mean cross-entropy of (T, V) logits, in at least fp32 a few rows at a time; -100 does not count.

    Args:
        logits: (T, V).
        targets: (T,).
        count: the sum is divided by it in place of the number of targets here.
    """
    counted = targets != -100
    losses = -token_logprobs(logits, target_ids=targets.clamp(min=0), temperature=1.0)
    total = losses.where(counted, 0.0).sum()
    if count is None:
        return total / counted.sum()
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)
