"""What a reward is, and the rewards of this house: those that tasks bring, those of any task, and penalties that read
token ids."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from arcvideo.tasks import TASKS, answers
from arcvideo.tasks.task import Task, Worth

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


def answer_format(
    completions: Sequence[str], *, log_extra: LogExtra = quiet, **columns: Sequence[Any]
) -> list[float | None]:
    """Return 1.0 when the whole completion is one think block and one answer block, else 0.0; all samples.

    >>> answer_format(["<think>a</think><answer>B</answer>", "B"])
    [1.0, 0.0]
    """
    valid = [answers.split_answer(text).valid for text in completions]
    log_extra("problem", [None if good else "not <think>..</think><answer>..</answer>" for good in valid])
    return [float(good) for good in valid]


def one_answer(
    completions: Sequence[str], *, task: Sequence[str], log_extra: LogExtra = quiet, **columns: Sequence[Any]
) -> list[float | None]:
    """Return 1.0 when exactly one answer can be read (docs/answers.md), right or wrong, else 0.0; all samples.

    The task reads: one option, one range, or, for free texts, an answer that is one: not empty, not in two blocks, not
    inside a thought, with an end.

    >>> one_answer(["B", "A or B", "<think>so B", "two cats"], task=["mcq", "mcq", "qa", "qa"])
    [1.0, 0.0, 0.0, 1.0]
    """
    problems = []
    for place, (text, kind) in enumerate(zip(completions, task, strict=True)):
        read = TASKS[kind].read(text, truth_of(columns, place=place)) if kind in TASKS else answers.one_answer(text)
        problems.append(read.problem)
    log_extra("problem", problems)
    return [float(problem is None) for problem in problems]


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


REWARDS: dict[str, Reward] = {"format": answer_format, "one_answer": one_answer}
"""Name -> reward of any task; tasks bring their own."""
MAKERS: dict[str, Callable[..., Reward]] = {"soft_overlong": soft_overlong, "repetition": repetition}
"""Name -> function that makes a reward of its arguments: `repetition(ngram=3)`; tasks bring their own."""
