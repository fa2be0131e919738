"""What a reward is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Any

Reward = Callable[..., Any]
"""Called as `reward(completions, **columns)`: a score for each completion, None where the reward does not apply. It may
be an `async def`."""
RESERVED = frozenset({"completions", "prompts", "completion_ids", "key", "task", "duration", "log_extra"})
"""Columns that a field of an item cannot take the place of."""
LogExtra = Callable[[str, Sequence[Any]], None]
"""Called by a reward as `log_extra(name, values)`: a note for each completion, for people to read."""


def quiet(name: str, values: Sequence[Any]) -> None:
    """A LogExtra that forgets."""


def awaited(scores: Any) -> Sequence[float | None]:
    """Return the scores of a reward, also of an `async def`, whose own tasks run side by side until it returns."""
    return asyncio.run(_result(scores)) if inspect.isawaitable(scores) else scores


async def _result(scores: Any) -> Sequence[float | None]:
    return await scores
