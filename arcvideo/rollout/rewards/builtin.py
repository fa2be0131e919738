"""Rewards of any task: the answer format, and whether there is one answer at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arcvideo.rollout.rewards.graded import truth_of
from arcvideo.rollout.rewards.protocol import LogExtra, quiet
from arcvideo.tasks import TASKS, answers


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
