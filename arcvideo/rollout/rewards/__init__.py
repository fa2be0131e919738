"""Rewards: `f(completions, **columns) -> list[float | None]`, the protocol of TRL, whose own rewards work by name.

`columns` are lists as long as `completions`: `prompts` (text), `completion_ids`, `key`, `task`, and one column for each
entry of the samples' truth (`letter`, `options`, `span`, `text`, ...; None where a sample has no such entry). None as a
result means that the reward does not concern this completion.
"""

from __future__ import annotations

from importlib import import_module

from arcvideo.rollout.rewards.builtin import answer_format, mcq_accuracy, temporal_iou
from arcvideo.rollout.rewards.protocol import Reward

REWARDS: dict[str, Reward] = {
    "mcq_accuracy": mcq_accuracy,
    "temporal_iou": temporal_iou,
    "format": answer_format,
}


def load_reward(name: str) -> Reward:
    """The reward behind a name of `REWARDS`, or behind `package.module:function`.

    Raises:
        ValueError: it is unknown or cannot be imported; the message names the key and the remedy.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, separator, attribute = name.partition(":")
    if not separator:
        known = ", ".join(REWARDS)
        raise ValueError(f"grpo.rewards.{name} is unknown; use one of {known}, or 'package.module:function'")
    try:
        reward = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"grpo.rewards: {name!r} cannot be imported: {error}") from error
    if not callable(reward):
        raise ValueError(f"grpo.rewards: {name!r} is not a function but {type(reward).__name__}")
    return reward
