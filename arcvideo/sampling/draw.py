"""Drawing tokens: filters and noise, as pure functions.

The noise of a token depends on (seed, key of the prompt, generation, position) only, never on what else is in the batch
or on how many ranks there are, so a rollout can be reproduced alone. Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def uniforms(*, seed: int, key: str, generation: int, count: int) -> Tensor:
    """Return (count,) float64 in [0, 1): the noise of one completion, one number a position."""
    digest = hashlib.sha256(f"{seed}\x00{key}\x00{generation}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def seed_at(place: int, *, seed: int) -> int:
    """Return the seed of the prompt at a place of the stream: a prompt that comes again draws other completions."""
    return (seed << 48) + place


def filtered(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Return logits with everything outside the top k and the nucleus at -inf; at least the most likely token stays."""
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        outside = probabilities.cumsum(dim=-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
    return logits


def draw(logits: Tensor, *, noise: Tensor, last: Tensor | None = None) -> Tensor:
    """Return (R,) int64 tokens by inverting the distribution function, in float64 so that large vocabularies do not
    round.

    Args:
        logits: (R, V) float32, filtered.
        noise: (R,) float64 in [0, 1).
        last: the largest id that has any probability, where the caller knows it for all rows.
    """
    distribution = logits.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    points = noise.to(logits.device) * distribution[:, -1]
    tokens = torch.searchsorted(distribution, points[:, None], right=True).squeeze(-1)
    # noise can round up to the total; fall back to the last token that has any probability
    if last is None:
        last = logits.shape[-1] - 1 - torch.isfinite(logits).flip(-1).int().argmax(dim=-1)
    return torch.minimum(tokens, last)
