"""What a reward is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Reward = Callable[..., Sequence[float | None]]
"""Called as `reward(completions, **columns)`: a score for each completion, None where the reward does not apply."""
