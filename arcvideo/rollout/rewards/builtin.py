"""The option letter of the paper's multiple choice, the answer format, and whether there is one answer at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arcvideo.rollout.rewards.protocol import LogExtra, quiet
from arcvideo.tasks import answers


def mcq_accuracy(
    completions: Sequence[str],
    *,
    task: Sequence[str],
    letter: Sequence[str | None] = (),
    log_extra: LogExtra = quiet,
    **columns: Sequence[Any],
) -> list[float | None]:
    """1.0 for the right option letter, else 0.0; multiple-choice samples only.

    >>> mcq_accuracy(["<think>red</think><answer>B</answer>", "C"], task=["mcq", "mcq"], letter=["B", "B"])
    [1.0, 0.0]

    Raises:
        ValueError: a multiple choice has no letter to compare with.
    """
    nothing = [None] * len(completions)
    options = columns.get("options") or nothing
    asked = [kind == "mcq" for kind in task]
    read = [
        answers.read_letter(text, options=choices) if mine else answers.Reading()
        for text, choices, mine in zip(completions, options, asked, strict=True)
    ]
    log_extra("read", [reading.value for reading in read])
    log_extra("problem", [reading.problem for reading in read])
    return [
        float(reading.value == _truth(right, name="letter")) if mine else None
        for reading, right, mine in zip(read, letter or nothing, asked, strict=True)
    ]


def answer_format(
    completions: Sequence[str], *, log_extra: LogExtra = quiet, **columns: Sequence[Any]
) -> list[float | None]:
    """1.0 when the whole completion is one think block and one answer block, else 0.0; all samples.

    >>> answer_format(["<think>a</think><answer>B</answer>", "B"])
    [1.0, 0.0]
    """
    valid = [answers.split_answer(text).valid for text in completions]
    log_extra("problem", [None if good else "not <think>..</think><answer>..</answer>" for good in valid])
    return [float(good) for good in valid]


def one_answer(
    completions: Sequence[str], *, task: Sequence[str], log_extra: LogExtra = quiet, **columns: Sequence[Any]
) -> list[float | None]:
    """1.0 when exactly one answer can be read (docs/answers.md), right or wrong, else 0.0; all samples.

    A multiple choice must name one option and a grounding one range. Any other answer must be one: not empty, not in
    two blocks, not inside a thought, with an end.

    >>> one_answer(["B", "A or B", "<think>so B", "two cats"], task=["mcq", "mcq", "qa", "qa"])
    [1.0, 0.0, 0.0, 1.0]
    """
    options = columns.get("options") or [None] * len(completions)
    problems = [
        _problem(text, kind=kind, options=choices)
        for text, kind, choices in zip(completions, task, options, strict=True)
    ]
    log_extra("problem", problems)
    return [float(problem is None) for problem in problems]


def _problem(text: str, *, kind: str, options: Sequence[str] | None) -> str | None:
    if kind == "mcq":
        return answers.read_letter(text, options=options).problem
    return (answers.read_span(text) if kind == "grounding" else answers.one_answer(text)).problem


def _truth(value: Any, *, name: str) -> Any:
    """Return what an answer is compared with.

    Raises:
        ValueError: it is missing; nothing read would be as right as nothing known.
    """
    if value is None:
        raise ValueError(f"the truth has no {name!r}, so no answer can be right; mend or leave out the item")
    return value
