"""Rejection sampling as pure functions: which drawn answers pass, what is written of them, and how much was kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arcvideo.sampling.settings import SampleSettings
from arcvideo.tasks import TASKS
from arcvideo.tasks.blocks import answer_text, split_answer

BINS = 10
"""Of the histogram of rewards between 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """All answers to one question, as a line of the journal keeps them."""

    key: str
    """`<record key>/<item number>`."""
    task: str
    answer: str
    """What is supervised in the item's own answer, in the style that was asked for."""
    texts: list[str]
    """In order of drawing."""
    finished: list[bool]
    """False: cut off."""
    scores: list[float | None]
    """By the reward of the task; None where it abstained or the task has none."""

    @property
    def number(self) -> int:
        """Place of the item in its record."""
        return int(self.key.rpartition("/")[2])


def passing(drawn: Drawn, *, settings: SampleSettings) -> list[int]:
    """Return numbers of the answers that pass, in order of drawing."""
    bound, strict = settings.bound_of(drawn.task), settings.require_format and settings.style == "think"
    rows = zip(drawn.texts, drawn.finished, drawn.scores, strict=True)
    return [
        number
        for number, (text, finished, score) in enumerate(rows)
        if finished and score is not None and score > bound and (_reasoned(text) or not strict)
    ]


def _reasoned(text: str) -> bool:
    """Return whether an answer is in the format and thinks at all."""
    parsed = split_answer(text)
    return parsed.valid and bool(parsed.think)


def kept(drawn: Drawn, *, settings: SampleSettings) -> list[int]:
    """Return numbers of the answers that are kept: at most K of those that pass, equal texts once."""
    numbers = passing(drawn, settings=settings)
    if settings.prefer == "best":
        numbers.sort(key=lambda number: -float(drawn.scores[number] or 0.0))  # stable: earlier ones first
    different = {drawn.texts[number]: number for number in reversed(numbers)}
    return [number for number in numbers if different[drawn.texts[number]] == number][: settings.keep]


def items_of(drawn: Drawn, *, item: Mapping[str, Any], settings: SampleSettings) -> list[dict[str, Any]]:
    """Return items of a record (docs/data-format.md) made of the answers to one of its items; none when nothing is
    kept.
    """
    if settings.pairs == "truth":
        worse = _worse_than_truth(drawn, settings=settings)
        return [] if worse is None else [{**item, "rejected": drawn.texts[worse]}]
    chosen = kept(drawn, settings=settings)
    made = [_traced(drawn, number=number, item=item) for number in chosen]
    if settings.pairs == "none":
        return made
    good = set(passing(drawn, settings=settings))
    failed = [number for number in range(len(drawn.texts)) if number not in good and drawn.finished[number]]
    return [{**made[0], "rejected": drawn.texts[failed[0]]}] if made and failed else []


def _traced(drawn: Drawn, *, number: int, item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the item with the reasoning and the answer that were drawn; its own answer stays what is compared with."""
    parsed = split_answer(drawn.texts[number])
    made = {name: value for name, value in item.items() if name not in ("draft", "think")}
    made["think"] = parsed.think or ""
    if drawn.task not in TASKS or TASKS[drawn.task].text_draft:
        made["draft"] = parsed.answer if parsed.answer is not None else answer_text(drawn.texts[number])
    return {**made, "drawn": {"number": number, "score": drawn.scores[number]}}


def _worse_than_truth(drawn: Drawn, *, settings: SampleSettings) -> int | None:
    """Return the first whole answer that is worse than the item's own: it fails, or, without a reward, says something
    else.
    """
    own = answer_text(drawn.answer)
    for number, (text, finished, score) in enumerate(zip(drawn.texts, drawn.finished, drawn.scores, strict=True)):
        differs = answer_text(text) != own
        if finished and text.strip() and differs and (score is None or score <= settings.bound_of(drawn.task)):
            return number
    return None


def summary(rows: Iterable[Drawn], *, settings: SampleSettings) -> dict[str, dict[str, Any]]:
    """Return task -> questions, answers, shares and histograms."""
    tasks: dict[str, list[Drawn]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    return {task: _task_summary(tasks[task], settings=settings) for task in sorted(tasks)}


def _task_summary(rows: Sequence[Drawn], *, settings: SampleSettings) -> dict[str, Any]:
    passed = [len(passing(row, settings=settings)) for row in rows]
    taken = [len(items_of(row, item={}, settings=settings)) for row in rows]
    texts = [text for row in rows for text in row.texts]
    scores = [score for row in rows for score in row.scores if score is not None]
    per_question, histogram = [0] * (settings.num_generations + 1), [0] * BINS
    for count in passed:
        per_question[count] += 1
    for score in scores:
        histogram[min(max(int(score * BINS), 0), BINS - 1)] += 1
    return {
        "questions": len(rows),
        "answers": len(texts),
        "passed": sum(passed) / len(texts),
        "questions_kept": sum(count > 0 for count in taken) / len(rows),
        "items_written": sum(taken),
        "format_valid": sum(split_answer(text).valid for text in texts) / len(texts),
        "cut_off": sum(not done for row in rows for done in row.finished) / len(texts),
        "mean_reward": sum(scores) / len(scores) if scores else None,
        "passing_answers_of_a_question": per_question,
        "reward_histogram": histogram,
    }
