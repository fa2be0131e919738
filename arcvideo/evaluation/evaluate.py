"""Evaluating a model on held-out prompts: greedy answers, scored per item, with intervals and chance levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arcvideo.evaluation import scores
from arcvideo.evaluation.bootstrap import Metric, interval
from arcvideo.evaluation.predictions import Prediction, write_predictions
from arcvideo.evaluation.settings import EvaluationSettings
from arcvideo.feed.prompts import Prompt, Question
from arcvideo.model.settings import AudioSettings
from arcvideo.progress import watched
from arcvideo.rollout.sampler import InProcessSampler
from arcvideo.rollout.settings import Sampling
from arcvideo.tasks.answers import split_answer, temporal_iou
from arcvideo.types import Media

SPEECH_TAG = "topic:speech"
"""Questions with this tag ask what is said: they cannot be answered without sound."""


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
        rows = [_predict(name, prompt=prompt, text=answers[_heard(name), prompt.key]) for prompt in items]
        if name == "grounding_miou_constant":
            rows = _constant_rows(items)
        metrics[name] = _metric(rows, chance=_chance(name, items=items), settings=settings)
        predictions += rows
    if not metrics:
        raise ValueError(
            f"none of evaluation.metrics={settings.metrics} has an item among {len(prompts)} held-out prompts"
        )
    if output is not None:
        write_predictions(output, predictions=predictions)
    return metrics


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
    """The questions a metric is measured on."""
    if metric == "format_valid":
        found = [question for question in questions if question.instructed]
        tasks = dict.fromkeys(question.task for question in found)  # those the other metrics decode anyway
        return [one for task in tasks for one in _evenly([one for one in found if one.task == task], limit=limit)]
    task = _TASK[metric]
    found = [question for question in questions if question.task == task]
    if metric.startswith("speech_qa"):
        found = [question for question in found if SPEECH_TAG in question.tags and question.has_audio]
    return _evenly(found, limit=limit)


def _evenly(questions: list[Question], *, limit: int) -> list[Question]:
    """At most `limit` of the questions, spread over all of them, since neighbours share a clip."""
    if not limit or len(questions) <= limit:
        return questions
    return [questions[index * len(questions) // limit] for index in range(limit)]


_TASK = {
    "transcript_token_error": "asr",
    "speech_qa": "qa",
    "speech_qa_audio_zeroed": "qa",
    "mcq_accuracy": "mcq",
    "grounding_miou": "grounding",
    "grounding_miou_constant": "grounding",
    "summary_f1": "summary",
}


def _heard(metric: str) -> bool:
    return metric != "speech_qa_audio_zeroed"


def _answers(
    sampler: InProcessSampler, chosen: dict[str, list[Prompt]], *, settings: EvaluationSettings
) -> dict[tuple[bool, str], str]:
    """(with sound, sample key) -> greedy answer; a prompt that several metrics share is decoded once."""
    audio = sampler.model.settings.audio
    wanted: dict[tuple[bool, str], Prompt] = {}
    for name, items in chosen.items():
        if name == "grounding_miou_constant":
            continue
        for prompt in items:
            wanted[_heard(name), prompt.key] = prompt if _heard(name) else without_audio(prompt, audio=audio)
    # Clips together, so that their prefix is shared; alike lengths together, so that little is padding.
    order = sorted(wanted, key=lambda key: (key[0], wanted[key].sample.media_key or "", key[1]))
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


def _predict(metric: str, *, prompt: Prompt, text: str) -> Prediction:
    """Score one answer."""
    truth, weight = prompt.truth, 1.0
    if metric == "transcript_token_error":
        value, size = scores.transcript_edits(text, truth=truth["text"])
        expected, score, weight = truth["text"], float(value), float(size)
    elif metric.startswith("speech_qa"):
        expected, score = truth["text"], scores.exact(text, truth=truth["text"])
    elif metric == "mcq_accuracy":
        expected, score = truth["letter"], scores.letter(text, truth=truth["letter"], options=truth.get("options"))
    elif metric == "summary_f1":
        expected, score = truth["text"], scores.word_f1(text, truth=truth["text"])
    elif metric == "grounding_miou":
        expected, score = list(truth["span"]), scores.overlap(text, truth=truth["span"])
    else:
        expected, score = prompt.sample.turns[0].answer, float(split_answer(text).valid)
    return Prediction(
        metric=metric,
        key=prompt.key,
        question=prompt.question,
        truth=expected,
        prediction=text,
        score=score,
        weight=weight,
    )


def _constant_rows(items: Sequence[Prompt]) -> list[Prediction]:
    """What the one best span would score on these very items."""
    span = scores.best_constant_span([prompt.truth["span"] for prompt in items])
    return [
        Prediction(
            metric="grounding_miou_constant",
            key=prompt.key,
            question=prompt.question,
            truth=list(prompt.truth["span"]),
            prediction=f"{span[0]:g} - {span[1]:g}",
            score=temporal_iou(span, prompt.truth["span"]),
        )
        for prompt in items
    ]


def _metric(rows: Sequence[Prediction], *, chance: float, settings: EvaluationSettings) -> Metric:
    found = interval(
        [row.score for row in rows],
        weights=[row.weight for row in rows],
        seed=settings.seed,
        resamples=settings.bootstrap,
    )
    return Metric(value=found.mean, low=found.low, high=found.high, chance=chance, n=len(rows))


def _chance(metric: str, *, items: Sequence[Prompt]) -> float:
    """What the best answer that ignores the clip reaches on these items."""
    if metric == "transcript_token_error":
        return scores.constant_transcript_error([prompt.truth["text"] for prompt in items])
    if metric.startswith("speech_qa"):
        return scores.most_frequent_share([(prompt.question, prompt.truth["text"]) for prompt in items])
    if metric == "mcq_accuracy":
        return sum(1 / len(prompt.truth["options"]) for prompt in items) / len(items)
    if metric == "summary_f1":
        return scores.constant_word_f1([prompt.truth["text"] for prompt in items])
    if metric.startswith("grounding"):
        span = scores.best_constant_span([prompt.truth["span"] for prompt in items])
        return sum(temporal_iou(span, prompt.truth["span"]) for prompt in items) / len(items)
    return 0.0
