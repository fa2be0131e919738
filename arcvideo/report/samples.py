"""Examples for the page: the same held-out questions after each stage, and groups of rollouts.

They are chosen by what was asked, never by how well it was answered.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from arcvideo.report.film import Film, films
from arcvideo.report.records import StageRecord
from arcvideo.tasks import TASKS
from arcvideo.tasks.answers import split_answer
from arcvideo.tasks.spans import parse_span

CLIPS = 4
"""Held-out clips shown where no stage says `evaluation.samples`."""
_MEASURES = {measure.name: measure for task in TASKS.values() for measure in task.measures}

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer: of a stage, or of a rollout."""

    label: str
    """Who answered: a stage, or how many of the group."""
    think: str
    """Inside of the think block; empty without a well-formed pair of blocks."""
    answer: str
    """The answer block, or the whole text where the blocks are not well formed."""
    score: str
    """As the page prints it."""
    good: float | None = None
    """Score between 0 and 1 where higher is better; None where that does not hold."""
    span: Span | None = None
    """Seconds, when it names a range."""
    advantage: float | None = None
    """Of a rollout."""


@dataclass(frozen=True, kw_only=True)
class AnsweredQuestion:
    """A question with its truth and the answers to it."""

    kind: str
    """Metric, or task and step."""
    text: str
    truth: str
    answers: tuple[Answer, ...]
    span: Span | None = None
    """The true range, seconds."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """Questions about one clip."""

    key: str
    film: Film | None
    questions: tuple[AnsweredQuestion, ...] = field(default=())

    @property
    def duration(self) -> float:
        """Seconds that the time lines span."""
        spans = [s for q in self.questions for s in (q.span, *(a.span for a in q.answers)) if s]
        seconds = self.film.duration if self.film else 0.0
        return seconds or max((end for _, end in spans), default=1.0)


def held_out_examples(stages: Sequence[StageRecord]) -> list[Example]:
    """Return the clips about which most kinds of questions were asked, spread over the set, with every stage's
    answers.
    """
    questions: dict[str, dict[str, str]] = defaultdict(dict)
    given: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    answered = [stage for stage in stages if stage.predictions]
    if not answered:
        return []
    last = answered[-1]
    shards = last.setting("evaluation", "shards")
    for stage in answered:
        if stage.setting("evaluation", "shards") != shards:
            continue  # other clips, whose keys may be the same
        for row in stage.predictions:
            measure = _MEASURES.get(row["metric"])
            if measure is not None and not measure.control:  # other answers are shown by another metric already
                question = json.dumps([row["key"], row.get("question"), row.get("truth")])
                questions[_record(row["key"])].setdefault(row["metric"], question)
                given[row["metric"], question].append((stage.name, row))
    if not questions:
        return []
    most = max(len(kinds) for kinds in questions.values())
    full = sorted(key for key, kinds in questions.items() if len(kinds) == most)
    said = last.setting("evaluation", "samples")
    count = min(CLIPS if said is None else said, len(full))
    chosen = [full[place * len(full) // count] for place in range(count)]
    examples = [
        Example(
            key=key,
            film=None,
            questions=tuple(_asked(kind, given[kind, item]) for kind, item in questions[key].items()),
        )
        for key in chosen
    ]
    return _with_films(examples, shards=[shards or ""], stage=last)


def rollout_examples(stage: StageRecord) -> list[Example]:
    """Return the first and the last group of each task, of those whose rewards differ where there are any."""
    groups = [list(rows) for _, rows in groupby(stage.rollouts, key=_prompt_of)]
    chosen: list[list[dict[str, Any]]] = []
    for task in dict.fromkeys(group[0].get("task", "") for group in groups):
        own = [group for group in groups if group[0].get("task", "") == task]
        varied = [group for group in own if len({_reward(row) for row in group}) > 1] or own
        chosen += [varied[0]] + ([varied[-1]] if len(varied) > 1 else [])
    chosen.sort(key=lambda group: group[0]["step"])
    examples = [Example(key=_record(group[0]["key"]), film=None, questions=(_group(group),)) for group in chosen]
    sources = stage.setting("data", "sources") or {}
    return _with_films(examples, shards=[source["shards"] for source in sources.values()], stage=stage)


def _with_films(examples: Sequence[Example], *, shards: Sequence[str], stage: StageRecord) -> list[Example]:
    if not stage.config.get("model"):
        return list(examples)
    by_key = films([example.key for example in examples], shards=[s for s in shards if s], config=stage.config)
    return [replace(example, film=by_key.get(example.key)) for example in examples]


def _asked(metric: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> AnsweredQuestion:
    first = rows[0][1]
    span = _span(first["truth"])
    answers = []
    for name, row in rows:
        score = row["score"] / row["weight"]
        measure = _MEASURES.get(metric.partition("[")[0])
        lower = measure is not None and measure.lower_is_better
        answers.append(
            _answer(
                row["prediction"], label=name, score=f"{score:.2f}", good=None if lower else score, timed=bool(span)
            )
        )
    answers = [_together(list(same)) for _, same in groupby(answers, key=lambda answer: replace(answer, label=""))]
    truth = _seconds(span) if span else str(first["truth"])
    return AnsweredQuestion(kind=metric, text=first["question"], truth=truth, span=span, answers=tuple(answers))


def _together(same: Sequence[Answer]) -> Answer:
    """Return one row for neighbouring stages that gave the same answer."""
    if len(same) == 1:
        return same[0]
    between = ", " if len(same) == 2 else " to "
    return replace(same[0], label=f"{same[0].label}{between}{same[-1].label}")


def _group(rows: Sequence[Mapping[str, Any]]) -> AnsweredQuestion:
    """Return a group of rollouts: equal completions once, with how often they came."""
    first = rows[0]
    truth = first["truth"] if isinstance(first["truth"], Mapping) else {"text": first["truth"]}
    span = _span(truth.get("span"))
    counts = Counter(row["completion"] for row in rows)
    answers = []
    for row in {row["completion"]: row for row in sorted(rows, key=lambda row: -row["advantage"])}.values():
        times = f"{counts[row['completion']]} of {len(rows)}"
        answer = _answer(
            row["completion"], label=times, score=f"{_reward(row):.2f}", good=_reward(row), timed=bool(span)
        )
        answers.append(replace(answer, advantage=float(row["advantage"])))
    true_text = _seconds(span) if span else str(truth.get("letter") or truth.get("text") or dict(truth))
    kind = f"step {first['step']}, {first.get('task', 'rollout')}"
    return AnsweredQuestion(kind=kind, text=first["question"], truth=true_text, span=span, answers=tuple(answers))


def _answer(text: str, *, label: str, score: str, good: float | None, timed: bool) -> Answer:
    parsed = split_answer(text)
    whole = parsed.valid and parsed.answer is not None
    return Answer(
        label=label,
        think=(parsed.think or "") if whole else "",
        answer=str(parsed.answer) if whole else text,
        score=score,
        good=good,
        span=parse_span(text) if timed else None,
    )


def _reward(row: Mapping[str, Any]) -> float:
    """Sum of a completion's rewards; those that did not apply count nothing."""
    return float(sum(value for value in row["rewards"].values() if isinstance(value, int | float)))


def _span(truth: Any) -> Span | None:
    if isinstance(truth, Sequence) and not isinstance(truth, str) and len(truth) == 2:
        return float(truth[0]), float(truth[1])
    return None


def _seconds(span: Span) -> str:
    return f"{span[0]:g} to {span[1]:g} s"


def _prompt_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what the rows of one group share; two prompts of a step may have one key."""
    return row["step"], row["key"], row.get("place")


def _record(key: str) -> str:
    """`record/item` -> `record`."""
    return key.rpartition("/")[0] or key
