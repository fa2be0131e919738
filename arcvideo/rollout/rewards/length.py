"""Penalties that read token ids: completions that are too long, and completions that repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arcvideo.rollout.rewards.protocol import Reward


def soft_overlong(*, max_length: int, cache: int) -> Reward:
    """Return a reward of 0 up to max_length - cache tokens, falling linearly to -1 at max_length, -1 beyond (DAPO
    2503.14476).

    >>> soft_overlong(max_length=10, cache=4)(["", "", ""], completion_ids=[[0] * 6, [0] * 8, [0] * 12])
    [0.0, -0.5, -1.0]
    """
    if not 0 < cache <= max_length:
        raise ValueError(f"cache={cache} must be in 1..max_length={max_length}")

    def reward(
        completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float | None]:
        return [-min(max((len(ids) - (max_length - cache)) / cache, 0.0), 1.0) + 0.0 for ids in completion_ids]

    return reward


def repetition(*, ngram: int = 3, max_penalty: float = -1.0) -> Reward:
    """Return a reward of max_penalty times the share of n-grams that occurred before; n-grams of tokens, so any script
    works.

    >>> repetition(ngram=2)(["", ""], completion_ids=[[1, 2, 3], [1, 2, 1, 2, 1]])
    [0.0, -0.5]
    """
    if ngram < 1 or max_penalty > 0:
        raise ValueError(f"ngram={ngram} must be at least 1 and max_penalty={max_penalty} not above 0")

    def share(ids: Sequence[int]) -> float:
        grams = [tuple(ids[start : start + ngram]) for start in range(len(ids) - ngram + 1)]
        return 1.0 - len(set(grams)) / len(grams) if grams else 0.0

    def reward(
        completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float | None]:
        return [max_penalty * share(ids) + 0.0 for ids in completion_ids]

    return reward
