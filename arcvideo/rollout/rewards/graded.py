"""Rewards that tasks bring: what an answer is worth becomes a function in the protocol of rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from arcvideo.rollout.rewards.protocol import LogExtra, Reward, quiet
from arcvideo.tasks import TASKS
from arcvideo.tasks.task import Task, Worth


def graded_rewards() -> dict[str, Reward]:
    """Return name -> reward, of every task."""
    return {name: graded(task, worth) for task in TASKS.values() for name, worth in task.rewards.items()}


def graded_makers() -> dict[str, Callable[..., Reward]]:
    """Return name -> function that makes a reward of its arguments, of every task."""

    def made(task: Task, maker: Callable[..., Worth], **arguments: Any) -> Reward:
        return graded(task, maker(**arguments))

    return {name: partial(made, task, maker) for task in TASKS.values() for name, maker in task.reward_makers.items()}


def graded(task: Task, worth: Worth) -> Reward:
    """Return the reward of a task's samples: what the answer that can be read is worth, 0.0 for one that cannot.

    >>> reward = graded(TASKS["mcq"], TASKS["mcq"].rewards["mcq_accuracy"])
    >>> reward(["<think>red</think><answer>B</answer>", "C", "B or C"], task=["mcq"] * 3, letter=["B"] * 3)
    [1.0, 0.0, 0.0]

    Raises:
        ValueError: an item's truth is missing or cannot be reached.
    """

    def reward(
        completions: Sequence[str],
        *,
        task: Sequence[str],
        duration: Sequence[float | None] = (),
        log_extra: LogExtra = quiet,
        **columns: Sequence[Any],
    ) -> list[float | None]:
        scores: list[float | None] = [None] * len(completions)
        read: list[str | None] = [None] * len(completions)
        problems: list[str | None] = [None] * len(completions)
        for place, (text, kind) in enumerate(zip(completions, task, strict=True)):
            if kind != judge.name:
                continue
            truth = truth_of(columns, place=place)
            true, said = judge.compared(truth), judge.read(text, truth)
            problems[place] = said.problem
            scores[place] = 0.0
            if said.value is not None:
                read[place] = judge.say(said.value)
                scores[place] = worth(said.value, true, (duration[place] if duration else None) or 0.0)
        log_extra("read", read)
        log_extra("problem", problems)
        return scores

    judge = task
    return reward


def truth_of(columns: dict[str, Sequence[Any]], *, place: int) -> dict[str, Any]:
    """Return the entries of the columns at one completion; a column left out has none."""
    return {name: values[place] for name, values in columns.items() if len(values) > place}
