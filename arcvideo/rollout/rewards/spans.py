"""Rewards of temporal grounding: overlap of the predicted and the true span, and the published variants of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from arcvideo.rollout.rewards.protocol import LogExtra, Reward, quiet
from arcvideo.tasks import answers
from arcvideo.tasks.answers import Span


def temporal_iou(completions: Sequence[str], **columns: Any) -> list[float | None]:
    """Overlap over hull of predicted and true span, 0.0 when no span can be read; grounding samples only (paper).

    >>> temporal_iou(["<think></think><answer>00:00:02 - 00:00:04</answer>"], task=["grounding"], span=[(2.0, 6.0)])
    [0.5]
    """
    return _scored(completions, worth=lambda said, truth, _: answers.temporal_iou(said, truth), **columns)


def temporal_iou_edges(completions: Sequence[str], **columns: Any) -> list[float | None]:
    """IoU times (1 - start error / duration) times (1 - end error / duration): Time-R1, arXiv 2503.13377.

    >>> temporal_iou_edges(["00:00:02 - 00:00:04"], task=["grounding"], span=[(2.0, 6.0)], duration=[8.0])
    [0.375]
    """

    def worth(said: Span, truth: Span, duration: float) -> float:
        kept = 1.0
        for predicted, true in zip(said, truth, strict=True):
            kept *= max(0.0, 1.0 - abs(predicted - true) / duration)
        return kept * answers.temporal_iou(said, truth)

    return _scored(completions, worth=worth, **columns)


def temporal_recall(*, threshold: float) -> Reward:
    """A reward of 1.0 when the IoU reaches the threshold, else 0.0: R@threshold as the benchmarks count it."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold} must be in (0, 1]")

    def reward(completions: Sequence[str], **columns: Any) -> list[float | None]:
        return _scored(
            completions, worth=lambda said, truth, _: float(answers.temporal_iou(said, truth) >= threshold), **columns
        )

    return reward


def _scored(
    completions: Sequence[str],
    *,
    worth: Callable[[Span, Span, float], float],
    task: Sequence[str],
    span: Sequence[Any] = (),
    duration: Sequence[float | None] = (),
    log_extra: LogExtra = quiet,
    **columns: Any,
) -> list[float | None]:
    nothing = [None] * len(completions)
    scores: list[float | None] = []
    read: list[str | None] = []
    problems: list[str | None] = []
    for text, kind, truth, seconds in zip(completions, task, span or nothing, duration or nothing, strict=True):
        if kind != "grounding":
            said = answers.Reading[Span]()
            scores.append(None)
        else:
            said = answers.read_span(text)
            true = _truth(truth)
            # A clip lasts at least as long as what happens in it.
            scores.append(worth(said.value, true, max(seconds or 0.0, true[1])) if said.value else 0.0)
        read.append(f"{said.value[0]:g} - {said.value[1]:g} s" if said.value else None)
        problems.append(said.problem)
    log_extra("read", read)
    log_extra("problem", problems)
    return scores


def _truth(span: Any) -> Span:
    """Return the span an answer is compared with.

    Raises:
        ValueError: it is missing or has no length.
    """
    if span is None or not span[0] < span[1]:
        raise ValueError(f"the truth has the span {span!r}, which no answer can overlap; mend or leave out the item")
    return float(span[0]), float(span[1])
