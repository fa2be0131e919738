"""Evaluating a model on held-out prompts: greedy answers, scored per item, with intervals and chance levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arcvideo.evaluation.bootstrap import Metric, interval
from arcvideo.evaluation.predictions import Prediction, write_predictions
from arcvideo.evaluation.settings import FORM, EvaluationSettings
from arcvideo.feed.prompts import Prompt, Question
from arcvideo.model.settings import AudioSettings
from arcvideo.progress import watched
from arcvideo.sampling.sampler import InProcessSampler
from arcvideo.sampling.settings import Sampling
from arcvideo.tasks import TASKS
from arcvideo.tasks.answers import split_answer
from arcvideo.tasks.task import Measure, Score, Task
from arcvideo.types import Media

_FORM = Measure(
    name=FORM,
    score=lambda text, truth: Score(value=float(split_answer(text).valid)),
    chance=lambda items: 0.0,
)


def evaluate(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    tokenizer: Any,
    chosen: Mapping[str, Sequence[str]] | None = None,
    settings: EvaluationSettings,
    features: Any = None,
    output: Path | None = None,
) -> dict[str, Metric]:
    """The metrics of `settings.metrics` that have items, in that order.

    Args:
        model: an `ArcVideoForConditionalGeneration`.
        prompts: held-out prompts.
        tokenizer: of the model.
        chosen: `choose` of all questions when `prompts` are only those it names; None chooses among the prompts.
        settings: what to measure and how.
        features: a `FeatureStore` of tower outputs, or None.
        output: where to write one prediction a line; None writes nothing.

    Raises:
        ValueError: no metric has any item.
    """
    sampler = InProcessSampler(model, tokenizer=tokenizer, features=features)
    if chosen is None:
        chosen = choose([prompt.outline for prompt in prompts], settings=settings)
    found = {prompt.key: prompt for prompt in prompts}
    taken = {name: [found[key] for key in keys if key in found] for name, keys in chosen.items()}
    answers = _answers(sampler, taken, settings=settings)
    metrics: dict[str, Metric] = {}
    predictions: list[Prediction] = []
    for name, items in taken.items():
        if not items:
            continue
        task, measure = _measured(name)
        given = None if measure.constant is None else measure.constant(items)
        rows = [
            _predict(
                measure, task=task, prompt=prompt, text=answers[measure.silent, prompt.key] if given is None else given
            )
            for prompt in items
        ]
        metrics[name] = _metric(rows, chance=measure.chance(items), settings=settings)
        predictions += rows
    if not metrics:
        raise ValueError(
            f"none of evaluation.metrics={settings.metrics} has an item among {len(prompts)} held-out prompts"
        )
    if output is not None:
        write_predictions(output, predictions=predictions)
    return metrics


def _measured(metric: str) -> tuple[Task | None, Measure]:
    """Return a figure and its task; the form is of all tasks."""
    found = ((task, measure) for task in TASKS.values() for measure in task.measures if measure.name == metric)
    return next(found, (None, _FORM))


def without_audio(prompt: Prompt, *, audio: AudioSettings) -> Prompt:
    """The prompt about the same clip without its sound: an all-zero input of the audio encoder (paper 3.2.2)."""
    return replace(prompt, media=tuple(_silent(media, audio=audio) for media in prompt.media))


def _silent(media: Media, *, audio: AudioSettings) -> Media:
    known = media.mel if media.mel is not None else media.speech
    if not media.has_audio or known is None:
        return media
    zeros = torch.zeros(len(known), audio.num_mel_bins, 2 * audio.max_source_positions)
    return replace(media, has_audio=False, mel=zeros, speech=None)


def choose(questions: Sequence[Question], *, settings: EvaluationSettings) -> dict[str, list[str]]:
    """Metric of `settings.metrics` -> keys of the questions it is measured on: those of its task, in their order."""
    return {
        name: [question.key for question in _items(questions, metric=name, limit=settings.items)]
        for name in settings.metrics
    }


def _items(questions: Sequence[Question], *, metric: str, limit: int) -> list[Question]:
    """Return the questions that a metric is measured on."""
    task, measure = _measured(metric)
    if task is None:
        found = [question for question in questions if question.instructed]
        tasks = dict.fromkeys(question.task for question in found)  # those the other metrics decode anyway
        return [one for task in tasks for one in _evenly([one for one in found if one.task == task], limit=limit)]
    mine = [question for question in questions if question.task == task.name and measure.asks(question)]
    return _evenly(mine, limit=limit)


def _evenly(questions: list[Question], *, limit: int) -> list[Question]:
    """At most `limit` of the questions, spread over all of them, since neighbours share a clip."""
    if not limit or len(questions) <= limit:
        return questions
    return [questions[index * len(questions) // limit] for index in range(limit)]


def _answers(
    sampler: InProcessSampler, chosen: dict[str, list[Prompt]], *, settings: EvaluationSettings
) -> dict[tuple[bool, str], str]:
    """Return (silent, sample key) -> greedy answer; a prompt that several metrics share is decoded once."""
    audio = sampler.model.settings.audio
    wanted: dict[tuple[bool, str], Prompt] = {}
    for name, items in chosen.items():
        _, measure = _measured(name)
        if measure.constant is not None:
            continue
        for prompt in items:
            wanted[measure.silent, prompt.key] = without_audio(prompt, audio=audio) if measure.silent else prompt
    # Clips together, so that their prefix is shared; alike lengths together, so that little is padding.
    order = sorted(wanted, key=lambda key: (not key[0], wanted[key].sample.media_key or "", key[1]))
    greedy = Sampling(max_new_tokens=settings.max_new_tokens, temperature=0.0, batch_prompts=settings.batch_prompts)
    found: dict[tuple[bool, str], str] = {}
    starts = range(0, len(order), settings.batch_prompts)
    for start in watched(starts, what="evaluating", total=len(starts), unit="part"):
        keys = order[start : start + settings.batch_prompts]
        groups = sampler.sample(
            [wanted[key] for key in keys], num_generations=1, settings=greedy, seeds=[0] * len(keys)
        )
        found |= {key: group.completions[0].text for key, group in zip(keys, groups, strict=True)}
    return found


def _predict(measure: Measure, *, task: Task | None, prompt: Prompt, text: str) -> Prediction:
    """Score one answer."""
    score = measure.score(text, prompt.truth)
    return Prediction(
        metric=measure.name,
        key=prompt.key,
        question=prompt.question,
        truth=prompt.sample.turns[0].answer if task is None else task.compared(prompt.truth),
        prediction=text,
        score=score.value,
        weight=score.weight,
    )


def _metric(rows: Sequence[Prediction], *, chance: float, settings: EvaluationSettings) -> Metric:
    found = interval(
        [row.score for row in rows],
        weights=[row.weight for row in rows],
        clips=[row.clip for row in rows],
        seed=settings.seed,
        resamples=settings.bootstrap,
    )
    return Metric(value=found.mean, low=found.low, high=found.high, chance=chance, n=len(rows))
