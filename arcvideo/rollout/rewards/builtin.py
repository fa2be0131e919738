"""The rewards of the paper: option letter right or wrong, overlap of time spans; and the answer format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arcvideo.tasks import answers


def mcq_accuracy(
    completions: Sequence[str], *, task: Sequence[str], letter: Sequence[str | None] = (), **columns: Sequence[Any]
) -> list[float | None]:
    """1.0 for the right option letter, else 0.0; multiple-choice samples only.

    >>> mcq_accuracy(["<think>red</think><answer>B</answer>", "C"], task=["mcq", "mcq"], letter=["B", "B"])
    [1.0, 0.0]
    """
    options = columns.get("options") or [None] * len(completions)
    return [
        float(answers.parse_letter(text, options=choices) == right) if kind == "mcq" else None
        for text, kind, right, choices in zip(
            completions, task, letter or [None] * len(completions), options, strict=True
        )
    ]


def temporal_iou(
    completions: Sequence[str], *, task: Sequence[str], span: Sequence[Any] = (), **columns: Sequence[Any]
) -> list[float | None]:
    """Overlap over hull of predicted and true span, 0.0 when no span can be read; grounding samples only.

    >>> temporal_iou(["<think></think><answer>00:00:02 - 00:00:04</answer>"], task=["grounding"], span=[(2.0, 6.0)])
    [0.5]
    """
    scores: list[float | None] = []
    for text, kind, truth in zip(completions, task, span or [None] * len(completions), strict=True):
        predicted = answers.parse_span(text) if kind == "grounding" else None
        if kind != "grounding":
            scores.append(None)
        else:
            scores.append(answers.temporal_iou(predicted, truth) if predicted else 0.0)
    return scores


def answer_format(completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
    """1.0 when the whole completion is one think block and one answer block, else 0.0; all samples.

    >>> answer_format(["<think>a</think><answer>B</answer>", "B"])
    [1.0, 0.0]
    """
    return [float(answers.split_answer(text).valid) for text in completions]
