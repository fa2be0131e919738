"""What an objective is told of each target in place of all logits: its log-probability, and a few figures.

Shapes: T target tokens, V vocabulary, n figures asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from arcvideo.objectives.logprobs import token_entropy, token_logprobs
from arcvideo.objectives.loss import Loss
from arcvideo.types import Batch, model_inputs


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked of the head: log-probabilities of these targets, and figures beside them."""

    ids: Tensor
    """(T,) int64 targets, in the order of the hidden states that predict them."""
    temperature: float = 1.0
    """Logits are divided by it."""
    figures: tuple[str, ...] = ()
    """Of `right`, `entropy` and `mean_logit`; see `Scores`."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The head's answer to an `Ask`, each (T,) float32 or better; figures that were not asked for are None."""

    logprobs: Tensor
    """Of the targets over the whole vocabulary; carries the gradient."""
    right: Tensor | None = None
    """1 where no word has a higher logit than the target, else 0."""
    entropy: Tensor | None = None
    """Nats."""
    mean_logit: Tensor | None = None
    """Over the vocabulary, before the temperature."""

    @staticmethod
    def of(rows: Tensor, ask: Ask) -> Scores:
        """Return the scores in (1 + n, T) rows: log-probabilities, then the figures in the order asked for."""
        figures = dict(zip(ask.figures, rows[1:].detach(), strict=True))
        return Scores(logprobs=rows[0], **figures)


def score_logits(logits: Tensor, *, ask: Ask) -> Tensor:
    """Return (1 + n, T) rows of `Scores.of`, from (T, V) logits that exist."""
    rows = [token_logprobs(logits, target_ids=ask.ids, temperature=ask.temperature)]
    with torch.no_grad():
        for name in ask.figures:
            rows.append(_figure(name, logits, ask=ask).to(rows[0].dtype))
    return torch.stack(rows)


def _figure(name: str, logits: Tensor, *, ask: Ask) -> Tensor:
    if name == "right":
        return logits.gather(1, ask.ids[:, None])[:, 0] >= logits.amax(dim=1)
    if name == "entropy":
        return token_entropy(logits, temperature=ask.temperature)
    assert name == "mean_logit", name
    return logits.mean(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def scores_in(given: Tensor | Scores, *, ask: Ask) -> Scores:
    """Return what an objective was given, scores or (T, V) logits, as scores."""
    return given if isinstance(given, Scores) else Scores.of(score_logits(given, ask=ask), ask)


@runtime_checkable
class Asking(Protocol):
    """An objective that is given `Scores` in place of logits."""

    def ask(self, batch: Batch) -> Ask:
        """Return what is asked of the head about a batch."""
        ...


def asks(objective: Any) -> bool:
    """Return whether an objective is given scores.

    Whoever writes `__call__` says what it takes: a class derived from one of ours whose `__call__` is its own gets
    logits, unless it writes `ask`, too.
    """
    for kind in type(objective).__mro__:
        if "ask" in vars(kind):
            return True
        if "__call__" in vars(kind):
            return False
    return False


def loss_of(objective: Any, batch: Batch, *, run: Callable[..., Tensor]) -> Loss:
    """Return an objective's loss of a batch.

    Args:
        objective: is given scores if it asks for them, else logits.
        batch: one packed row.
        run: takes the inputs of the model and, with `ask=`, what is asked of its head; returns (T, V) logits, or with
            `ask=` the rows of `Scores.of`.
    """
    if not asks(objective):
        loss: Loss = objective(run(**model_inputs(batch)), batch)
        return loss
    ask = objective.ask(batch)
    scored: Loss = objective(Scores.of(run(**model_inputs(batch), ask=ask), ask), batch)
    return scored


def forward_of(model: Any, **more: Any) -> Callable[..., Tensor]:
    """Return the `run` of `loss_of` for a model that is called as it is.

    Args:
        model: its forward returns an object with `logits` and `scores`.
        more: further arguments of every forward.
    """

    def run(**inputs: Any) -> Tensor:
        output = model(**inputs, **more)
        scores: Tensor = output.scores if "ask" in inputs else output.logits
        return scores

    return run
