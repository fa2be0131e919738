"""From a name in `grpo.rewards` to the function: ours, TRL's, or a user's own; with arguments where it takes some."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from arcvideo.named import brought, load, path_of, problem
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.rewards.builtin import MAKERS, REWARDS, Reward, graded_makers, graded_rewards
from arcvideo.structured import nearest
from arcvideo.tasks import TASKS

TRL_REWARDS = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
"""Rewards of TRL that are used by name alone; their column `solution` is our letter or text of the truth."""
TRL_MAKERS = ("get_cosine_scaled_reward", "get_repetition_penalty_reward", "get_soft_overlong_punishment")
"""Functions of TRL that make a reward of their arguments."""


def check_reward(name: str) -> None:
    """Refuse a name that `load_reward` would refuse, as far as that shows without importing TRL or a user's module.

    Raises:
        ValueError: as `load_reward`.
    """
    path, _ = _split(name)
    if path in (*TRL_REWARDS, *TRL_MAKERS):
        return
    if not path_of(path, kind="rewards"):
        load_reward(name)
    elif wrong := problem(path, kind="rewards", key="grpo.rewards"):
        raise ValueError(wrong)


def unread_problems(task: str, *, settings: GrpoSettings, key: str) -> list[str]:
    """Return what is wrong when no reward of a task's prompts can read them: those that belong to other tasks cannot.

    Args:
        task: of the prompts.
        settings: of the stage.
        key: of the setting that brings the prompts, for the message.
    """
    used = settings.rewards_of(task)
    owners = {name: owner.name for owner in TASKS.values() for name in (*owner.rewards, *owner.reward_makers)}
    if any(owners.get(_split(name)[0], task) == task for name in used):
        return []
    own = [name for name, owner in owners.items() if owner == task]
    remedy = f"add {own[0]} to grpo.rewards or" if own else "give it a reward with"
    return [
        f"{key}: no reward of grpo.rewards ({', '.join(used)}) reads answers of task {task!r}; {remedy} "
        f"grpo.task_rewards.{task}={{NAME: 1.0}}, or leave the task out"
    ]


def load_reward(name: str) -> Reward:
    """Return the reward behind `name`, `name(argument=value)`, `package.module:function` or the latter with arguments.

    With arguments the function is called with them and must return the reward.

    Raises:
        ValueError: it is unknown or cannot be made; the message names the key and the remedy.
    """
    path, arguments = _split(name)
    reward = _find(path, name=name)
    needs_arguments = path in _makers() or path in TRL_MAKERS
    if arguments is None and needs_arguments:
        raise ValueError(f"grpo.rewards: {name} takes arguments, for example {_example(path)}")
    if arguments is not None:
        if not needs_arguments and not path_of(path, kind="rewards"):
            raise ValueError(f"grpo.rewards: {path} takes no arguments, got {name!r}")
        try:
            reward = reward(**arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"grpo.rewards: {name!r} cannot be made: {error}") from error
    if not callable(reward):
        raise ValueError(f"grpo.rewards: {name!r} is not a function but {type(reward).__name__}")
    return _conversational(reward) if path in (*TRL_REWARDS, *TRL_MAKERS) else reward


def _split(name: str) -> tuple[str, dict[str, Any] | None]:
    """Return the path before the parentheses and the arguments inside, None without parentheses."""
    path, opened, rest = name.partition("(")
    if not opened:
        return name, None
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if isinstance(call, ast.Call) and not call.args and all(keyword.arg for keyword in call.keywords):
            return path, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        pass
    raise ValueError(f"grpo.rewards: {name!r} cannot be read; write name(argument=value, ...) with plain values")


def rewards() -> dict[str, Reward]:
    """Return name -> reward, of any task and of each."""
    return {**graded_rewards(), **REWARDS}


def _makers() -> dict[str, Callable[..., Reward]]:
    return {**graded_makers(), **MAKERS}


def _find(path: str, *, name: str) -> Any:
    ours: dict[str, Any] = {**rewards(), **_makers()}
    if path in ours:
        return ours[path]
    if path in TRL_REWARDS or path in TRL_MAKERS:
        path = f"trl.rewards:{path}"
    if not path_of(path, kind="rewards"):
        choices = [*ours, *brought("rewards"), *TRL_REWARDS, *TRL_MAKERS]
        raise ValueError(
            f"grpo.rewards.{name} is unknown{nearest(path, choices)}; use one of {', '.join(choices)}, "
            "or 'package.module:function'"
        )
    return load(path, kind="rewards", key="grpo.rewards")


def _example(path: str) -> str:
    examples = {
        "temporal_recall": "temporal_recall(threshold=0.5)",
        "soft_overlong": "soft_overlong(max_length=1024, cache=256)",
        "repetition": "repetition(ngram=3)",
        "get_soft_overlong_punishment": "get_soft_overlong_punishment(max_completion_len=1024, soft_punish_cache=256)",
    }
    return examples.get(path, f"{path}()")


def _conversational(reward: Reward) -> Reward:
    """TRL's rewards read chat messages; ours read texts."""

    def wrapped(completions: Sequence[str], **columns: Any) -> Sequence[float | None]:
        letters, texts = (columns.get(name) or [None] * len(completions) for name in ("letter", "text"))
        solution = columns.pop("solution", None) or [
            letter or text for letter, text in zip(letters, texts, strict=True)
        ]
        chats = [[{"role": "assistant", "content": text}] for text in completions]
        return reward(completions=chats, solution=solution, **columns)

    return wrapped
