"""Log-probabilities of target tokens, in fp32, without an fp32 copy of all logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

AT_ONCE = 1 << 25
"""Logits that are in fp32 at one time, a few copies of 128 MiB."""


def token_logprobs(logits: Tensor, *, target_ids: Tensor, temperature: float) -> Tensor:
    """Return (T,) log-probabilities of the targets at the sampling temperature over the whole vocabulary, at least
    float32.

    The logits are turned to fp32 some rows at a time, forward and backward: no fp32 copy of all of them exists.
    """
    return _TokenLogprobs.apply(logits, target_ids, temperature)


class _TokenLogprobs(torch.autograd.Function):
    """Cross entropy, negated, whose backward computes the softmax of each chunk of rows anew."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target_ids: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, target_ids)
        ctx.temperature = temperature
        logprobs = logits.new_empty(len(logits), dtype=_exact(logits))
        for rows in _chunks(logits):
            logprobs[rows] = _logprobs(logits[rows], target_ids[rows], temperature)
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, target_ids = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _chunks(logits):
            with torch.enable_grad():
                chunk = logits[rows].detach().requires_grad_()
                values = _logprobs(chunk, target_ids[rows], ctx.temperature)
            (gradient[rows],) = torch.autograd.grad(values, chunk, grad[rows])
        return gradient, None, None


def _logprobs(logits: Tensor, target_ids: Tensor, temperature: float) -> Tensor:
    exact = logits.to(_exact(logits))
    exact = exact if temperature == 1 else exact / temperature
    return -F.cross_entropy(exact, target_ids, reduction="none")


def _exact(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Yield rows of (T, V) logits that are in fp32 together."""
    rows = max(1, AT_ONCE // max(logits.shape[1], 1))
    for first in range(0, len(logits), rows):
        yield slice(first, first + rows)


@torch.no_grad()
def token_entropy(logits: Tensor, *, temperature: float) -> Tensor:
    """Return (T,) float32 entropy in nats, in chunks because it needs fp32 probabilities of the whole vocabulary."""
    parts = []
    for rows in _chunks(logits):
        logp = F.log_softmax(logits[rows].float() / temperature, dim=-1)
        parts.append(-(logp.exp() * logp).sum(-1))
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)
