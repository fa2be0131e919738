"""Temporal grounding: when something happens, as a time range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arcvideo.tasks.answers import Reading
from arcvideo.tasks.fields import RecordError, conversation, interval, required_text, styled_answer
from arcvideo.tasks.scoring import best_constant_span
from arcvideo.tasks.spans import Span, clock_span, read_span, temporal_iou
from arcvideo.tasks.task import Asked, Measure, Score, Task, Truth, Worth, told_times
from arcvideo.types import Sample

RECALLS = (0.3, 0.5, 0.7)
"""Thresholds of R1, as benchmarks report it."""


def _sample(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `question`, `span` ([start, end] in seconds, start before end), `spans` (all that are right)."""
    question = required_text(item, "question")
    if item.get("span") is None:
        raise RecordError("no_answer", "field 'span' is missing")
    span = interval(item["span"], name="span")
    if span[0] == span[1]:
        raise RecordError("empty_span", f"'span' {list(span)} has no length, so no answer can overlap it")
    truth: dict[str, Any] = {"span": span}
    if item.get("spans") is not None:
        truth["spans"] = _several(item["spans"], span=span)
    return Sample(
        key=key,
        task="grounding",
        turns=conversation(item, question=question, answer=styled_answer(item, answer=clock_span(span), style=style)),
        media_key=media_key,
        truth=truth,
        instruction="grounding" if style != "plain" else "none",
    )


def _several(spans: Any, *, span: Span) -> tuple[Span, ...]:
    """Return the spans of an item that has several; the one that is trained is among them."""
    if not isinstance(spans, list | tuple) or not spans:
        raise RecordError("bad_spans", f"'spans' must be a list of [start, end], got {str(spans)[:80]!r}")
    read = tuple(interval(entry, name="spans") for entry in spans)
    if any(start == end for start, end in read):
        raise RecordError("empty_span", "a span of 'spans' has no length, so no answer can overlap it")
    if span not in read:
        raise RecordError("bad_spans", f"'span' {list(span)} is none of 'spans'")
    return read


def _read(text: str, truth: Truth) -> Reading[Span]:
    return read_span(text)


def _compared(truth: Truth) -> Span:
    span = truth.get("span")
    if span is None or not span[0] < span[1]:
        raise ValueError(f"the truth has the span {span!r}, which no answer can overlap; mend or leave out the item")
    return float(span[0]), float(span[1])


def _fit(said: Span, truth: Truth) -> float:
    """Return the IoU with the truth that fits best.

    Where several moments are right, the one window that is answered counts by the moment it overlaps most: R1 of
    QVHighlights (arXiv 2107.09609 and its evaluation code).
    """
    spans = truth.get("spans") or [_compared(truth)]
    return max(temporal_iou(said, (float(start), float(end))) for start, end in spans)


def _tell(text: str) -> list[str]:
    return told_times(text) or ["time: none that can be read"]


def temporal_iou_reward(said: Span, true: Span, seconds: float) -> float:
    """Return the overlap over the hull of predicted and true span (paper)."""
    return temporal_iou(said, true)


def temporal_iou_edges(said: Span, true: Span, seconds: float) -> float:
    """Return IoU times (1 - start error / duration) times (1 - end error / duration): Time-R1, arXiv 2503.13377.

    >>> temporal_iou_edges((2.0, 4.0), (2.0, 6.0), 8.0)
    0.375
    """
    length = max(seconds, true[1])  # a clip lasts at least as long as what happens in it
    factor = 1.0
    for predicted, right in zip(said, true, strict=True):
        factor *= max(0.0, 1.0 - abs(predicted - right) / length)
    return factor * temporal_iou(said, true)


def temporal_recall(*, threshold: float) -> Worth:
    """Return a reward of 1.0 when the IoU reaches the threshold, else 0.0: R@threshold as the benchmarks count it."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold} must be in (0, 1]")
    return lambda said, true, seconds: float(temporal_iou(said, true) >= threshold)


def cut_span(said: Span, *, seconds: float | None) -> Span:
    """Return a predicted span without what lies behind the end of its clip; None leaves it as it is."""
    return said if seconds is None else (min(said[0], seconds), min(said[1], seconds))


def _overlap(text: str, truth: Truth) -> Score:
    """Score IoU; a truth that says the `seconds` of the clip cuts the prediction there."""
    said = read_span(text).value
    return Score(value=_fit(cut_span(said, seconds=truth.get("seconds")), truth) if said else 0.0)


def _reaching(threshold: float) -> Measure:
    """Return R1@threshold: the share of questions whose answer has at least this IoU."""

    def chance(items: Sequence[Asked]) -> float:
        span = _best_span(items)
        return sum(_fit(span, item.truth) >= threshold for item in items) / len(items)

    return Measure(
        name=f"grounding_r1_{round(100 * threshold)}",
        score=lambda text, truth: Score(value=float(_overlap(text, truth).value >= threshold)),
        chance=chance,
        on_request=True,
    )


def _best_span(items: Sequence[Asked]) -> Span:
    return best_constant_span([_compared(item.truth) for item in items])


def _chance(items: Sequence[Asked]) -> float:
    span = _best_span(items)
    return sum(_fit(span, item.truth) for item in items) / len(items)


def _constant(items: Sequence[Asked]) -> str:
    return "{:g} - {:g}".format(*_best_span(items))


GROUNDING = Task(
    name="grounding",
    instruction="grounding",
    sample=_sample,
    read=_read,
    compared=_compared,
    say=lambda span: f"{span[0]:g} - {span[1]:g} s",
    tell=_tell,
    rewards={"temporal_iou": temporal_iou_reward, "temporal_iou_edges": temporal_iou_edges},
    reward_makers={"temporal_recall": temporal_recall},
    passes_above=0.6,  # paper 3.3
    measures=(
        Measure(name="grounding_miou", score=_overlap, chance=_chance),
        Measure(name="grounding_miou_constant", score=_overlap, chance=_chance, constant=_constant),
        *(_reaching(threshold) for threshold in RECALLS),
    ),
)
