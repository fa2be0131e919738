"""What a reward is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Reward = Callable[..., Sequence[float | None]]
"""Called as `reward(completions, **columns)`: a score for each completion, None where the reward does not apply."""
LogExtra = Callable[[str, Sequence[Any]], None]
"""Called by a reward as `log_extra(name, values)`: a note for each completion, for people to read."""


def quiet(name: str, values: Sequence[Any]) -> None:
    """A LogExtra that forgets."""
