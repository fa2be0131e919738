"""From answers to figures with intervals: which questions a metric is measured on, and what it comes to. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from arcvideo.evaluation.answers import FULL, NO_SOUND, Answer
from arcvideo.evaluation.bootstrap import Metric, interval
from arcvideo.evaluation.predictions import Prediction
from arcvideo.evaluation.settings import FORM, LOSS, EvaluationSettings, metric_names, part_of
from arcvideo.named import failure, imported, path_of
from arcvideo.structured import SettingsError
from arcvideo.tasks import TASKS
from arcvideo.tasks.blocks import split_answer
from arcvideo.tasks.task import Measure, Score, Task, Truth

_FORM = Measure(
    name=FORM,
    score=lambda text, truth: Score(value=float(split_answer(text).valid)),
    chance=lambda items: 0.0,
)


class Listed(Protocol):
    """A held-out question as far as it is known without reading its clip."""

    @property
    def key(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def instructed(self) -> bool: ...
    @property
    def has_audio(self) -> bool: ...


Q = TypeVar("Q")


def choose(questions: Sequence[Listed], *, settings: EvaluationSettings) -> dict[str, list[str]]:
    """Return metric -> keys of the questions it is measured on: those of its task, in their order.

    The metrics are those of `settings.metrics`. Where these are the default ones, and those of a task are measured on
    none of its questions, or nothing is measured at all, figures on request are taken too: what is held out is scored.
    """
    chosen = {name: _chosen(questions, metric=name, limit=settings.items) for name in settings.metrics}
    if settings.metrics != list(metric_names(on_request=False)):
        return chosen
    nothing = not any(keys for name, keys in chosen.items() if name != FORM)
    for task in TASKS.values():
        own = [measure.name for measure in task.measures if measure.name in chosen]
        if nothing or (own and not any(chosen[name] for name in own)):
            more = (measure.name for measure in task.measures if measure.on_request)
            chosen |= {name: _chosen(questions, metric=name, limit=settings.items) for name in more}
    return chosen


def check_chosen(
    chosen: Mapping[str, Sequence[str]], *, questions: Sequence[Listed], settings: EvaluationSettings
) -> None:
    """Refuse held-out questions that no metric can score.

    Raises:
        ValueError: no metric has any of the questions.
    """
    if any(chosen.values()):
        return
    tasks = sorted({question.task for question in questions})
    raise ValueError(
        f"none of evaluation.metrics={settings.metrics} has an item among {len(questions)} held-out questions "
        f"(tasks: {', '.join(tasks) or 'none'}); metrics: {', '.join(metric_names())}, or package.module:function"
    )


def figures(
    answers: Mapping[tuple[str, str], Answer], *, chosen: Mapping[str, Sequence[str]], settings: EvaluationSettings
) -> tuple[dict[str, Metric], list[Prediction]]:
    """Return metric -> value with its interval, and what each item counted; metrics without items are left out.

    Args:
        answers: (arm, key) -> answer; questions that could not be asked are missing.
        chosen: `choose` of the questions.
        settings: of the resampling.
    """
    metrics: dict[str, Metric] = {}
    predictions: list[Prediction] = []
    for name, keys in chosen.items():
        _, measure = measured(name)
        arm = NO_SOUND if measure.silent else FULL
        counted = counts(name, [answers[arm, key] for key in keys if (arm, key) in answers])
        if counted:
            rows = [row for row, _ in counted]
            metrics[name] = metric_of(rows, chance=measure.chance([item for _, item in counted]), settings=settings)
            predictions += rows
    return metrics, predictions


def counts(metric: str, items: Sequence[Answer]) -> list[tuple[Prediction, Answer]]:
    """Return what each answer counts in a figure, beside it, without those that a user's own does not concern."""
    task, measure = measured(metric)
    given = measure.constant(items) if measure.constant is not None and items else None
    rows = (_predict(measure, task=task, item=item, text=item.text if given is None else given) for item in items)
    return [(row, item) for row, item in zip(rows, items, strict=True) if row is not None]


def measured(metric: str) -> tuple[Task | None, Measure]:
    """Return a figure under the name it is asked for, and its task; the form and a user's own are of all tasks.

    Raises:
        ValueError: a user's own that cannot be imported or called.
    """
    name, tag = part_of(metric)
    matching = ((task, measure) for task in TASKS.values() for measure in task.measures if measure.name == name)
    task, measure = next(matching, None) or (None, _FORM if name == FORM else _own(name))
    return task, replace(measure, name=metric) if tag else measure


def lower_is_better(name: str) -> bool:
    """Return whether less of a figure is better: of a loss, and of what its task says so of."""
    return name == LOSS or measured(name)[1].lower_is_better


def _is_form(measure: Measure) -> bool:
    return measure.score is _FORM.score


def _own(name: str) -> Measure:
    """Return the figure of `package.module:function`: a `Measure`, or a function (text, truth) -> number or None."""
    try:
        figure = imported(path_of(name, kind="metrics"), what=f"evaluation.metrics: {name!r}")
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if isinstance(figure, Measure):
        return replace(figure, score=_guarded(figure.score, name=name))
    if not callable(figure):
        raise SettingsError(f"evaluation.metrics has {name!r}, which is no function of an answer and its truth")
    return Measure(name=name, score=_scored(_guarded(figure, name=name), name=name), chance=lambda items: 0.0)


R = TypeVar("R")


def _guarded(function: Callable[[str, Truth], R], *, name: str) -> Callable[[str, Truth], R]:
    """Return the function with what it raises told in one line; the traceback hangs on it for whoever debugs."""
    code = getattr(function, "__code__", None)
    files = () if code is None else (code.co_filename,)

    def guarded(text: str, truth: Truth) -> R:
        try:
            return function(text, truth)
        except Exception as error:
            what = failure(error, files=files)
            raise SettingsError(f"metrics: {name} failed on the answer {text[:60]!r} ({what})") from error

    return guarded


def _scored(function: Callable[[str, Truth], Any], *, name: str) -> Callable[[str, Truth], Score]:
    def score(text: str, truth: Truth) -> Score:
        value = function(text, truth)
        if value is None:
            return Score(value=0.0, weight=0.0)
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)  # of numpy and torch, too
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if not math.isfinite(number):
            raise SettingsError(
                f"metrics: {name} gave {value!r} for the answer {text[:60]!r}; a metric gives a number, or None for an "
                "item it does not concern"
            )
        return Score(value=number)

    return score


def _predict(measure: Measure, *, task: Task | None, item: Answer, text: str) -> Prediction | None:
    """Score one answer; None when the metric does not concern it."""
    own = (
        {} if task is not None or _is_form(measure) else {"task": item.task, "tags": item.tags, "text": item.reference}
    )
    score = measure.score(text, {**own, **item.known})
    if score.weight == 0 and (own or score.value == 0):
        return None
    return Prediction(
        metric=measure.name,
        key=item.key,
        question=item.question,
        truth=item.reference if task is None else task.compared(item.truth),
        prediction=text,
        score=score.value,
        weight=score.weight,
        about=item.clip,
    )


def metric_of(rows: Sequence[Prediction], *, chance: float, settings: EvaluationSettings) -> Metric:
    """Return the figure that items come to, with its interval over clips."""
    estimate = interval(
        [row.score for row in rows],
        weights=[row.weight for row in rows],
        clips=[row.clip for row in rows],
        seed=settings.seed,
        resamples=settings.bootstrap,
    )
    return Metric(value=estimate.mean, low=estimate.low, high=estimate.high, chance=chance, n=len(rows))


def _chosen(questions: Sequence[Listed], *, metric: str, limit: int) -> list[str]:
    """Return the keys of the questions that a metric is measured on."""
    task, measure = measured(metric)
    _, tag = part_of(metric)
    questions = [question for question in questions if not tag or tag in question.tags]
    if task is None:
        usable = [question for question in questions if question.instructed or not _is_form(measure)]
        tasks = dict.fromkeys(question.task for question in usable)  # those the other metrics decode anyway
        return [
            chosen.key
            for task in tasks
            for chosen in evenly([question for question in usable if question.task == task], limit=limit)
        ]
    mine = [question for question in questions if question.task == task.name and measure.asks(question)]
    return [question.key for question in evenly(mine, limit=limit)]


def evenly(questions: list[Q], *, limit: int) -> list[Q]:
    """Return at most `limit` of the questions, spread over all of them, since neighbours share a clip."""
    if not limit or len(questions) <= limit:
        return questions
    return [questions[index * len(questions) // limit] for index in range(limit)]


def arms_of(metrics: Mapping[str, Sequence[str]]) -> dict[str, dict[str, None]]:
    """Arm -> keys that have to be asked in it for these metrics, each once; constants ask nothing of a model."""
    wanted: dict[str, dict[str, None]] = {}
    for name, keys in metrics.items():
        _, measure = measured(name)
        wanted.setdefault(NO_SOUND if measure.silent else FULL, {}).update(
            {} if measure.constant is not None else dict.fromkeys(keys)
        )
    return wanted
