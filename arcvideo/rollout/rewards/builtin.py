"""The option letter of the paper's multiple choice, and the answer format."""

from __future__ import annotations

import re
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
    """
    nothing = [None] * len(completions)
    options = columns.get("options") or nothing
    asked = [kind == "mcq" for kind in task]
    read = [
        answers.parse_letter(text, options=choices) if mine else None
        for text, choices, mine in zip(completions, options, asked, strict=True)
    ]
    log_extra("read", read)
    log_extra(
        "problem",
        [
            _letter_problem(text) if mine and found is None else None
            for text, found, mine in zip(completions, read, asked, strict=True)
        ],
    )
    return [
        float(found == right) if mine else None
        for found, right, mine in zip(read, letter or nothing, asked, strict=True)
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


def _letter_problem(text: str) -> str:
    """Why no letter could be read."""
    said = answers.answer_text(text)
    if not said:
        return "empty answer"
    letters = {found.upper() for found in re.findall(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", said)}
    return f"several letters: {', '.join(sorted(letters))}" if len(letters) > 1 else "no option letter"
