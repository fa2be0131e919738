"""Asking a model held-out prompts: greedy answers, clip by clip, so that few clips are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from arcvideo.evaluation.answers import FULL, NO_SOUND, Answer, answer_about
from arcvideo.evaluation.settings import EvaluationSettings
from arcvideo.feed.prompts import Prompt
from arcvideo.model.settings import AudioSettings
from arcvideo.sampling.encode import with_features
from arcvideo.sampling.settings import Sampling
from arcvideo.types import Media

FRAMES_TOGETHER = 600
"""Frames of the clips that are answered together, at most: four clips of the released length, whose encodings and keys
and values all stay in memory meanwhile."""

Asked = tuple[str, int, Prompt]
"""Arm, number of the question, prompt."""


def ask_all(
    prompts: Iterable[Prompt],
    *,
    sampler: Any,
    wanted: Mapping[str, Mapping[str, None]],
    numbers: Mapping[str, int],
    settings: EvaluationSettings,
) -> Iterator[list[Answer]]:
    """Yield the greedy answers to held-out prompts as they come; those about a clip come one behind the other.

    Args:
        prompts: read as they are needed, so that the pixels of few clips are in memory at a time.
        sampler: an `InProcessSampler`, whose feature store is read and filled.
        wanted: arm -> keys that are asked in it (`arms_of`).
        numbers: key -> place of the question among all of the measurement.
        settings: how answers are drawn.
    """
    audio = sampler.model.settings.audio
    clips = groupby(prompts, key=lambda prompt: prompt.sample.media_key or "")
    groups = (arms([(numbers[prompt.key], prompt) for prompt in clip], wanted=wanted, audio=audio) for _, clip in clips)
    yield from ask(groups, sampler=sampler, settings=greedy(settings))


def greedy(settings: EvaluationSettings) -> Sampling:
    """Return how answers are drawn."""
    return Sampling(max_new_tokens=settings.max_new_tokens, temperature=0.0, batch_prompts=settings.batch_prompts)


def arms(
    group: Sequence[tuple[int, Prompt]], *, wanted: Mapping[str, Mapping[str, None]], audio: AudioSettings
) -> list[Asked]:
    """Return what is asked about one clip: its prompts as they are, and without sound where that is wanted."""
    full = [(FULL, number, prompt) for number, prompt in group if prompt.key in wanted.get(FULL, {})]
    silent = [(number, prompt) for number, prompt in group if prompt.key in wanted.get(NO_SOUND, {})]
    return full + [(NO_SOUND, number, without_audio(prompt, audio=audio)) for number, prompt in silent]


def ask(groups: Iterable[Sequence[Asked]], *, sampler: Any, settings: Sampling) -> Iterator[list[Answer]]:
    """Yield the greedy answers, some clips at a time; what is asked about a clip stays together and shares its prefix.

    Args:
        groups: what is asked about each clip. Clips are read as they are needed, and their pixels dropped once the
            towers have seen them.
        sampler: an `InProcessSampler`, whose feature store is read and filled.
        settings: `greedy`, or what else decodes.
    """
    batch: list[Asked] = []
    frames = 0
    for group in groups:
        clips = {(medium.key, medium.has_audio): medium.frame_count for *_, prompt in group for medium in prompt.media}
        mine = sum(clips.values())
        if batch and (len(batch) + len(group) > settings.batch_prompts or frames + mine > FRAMES_TOGETHER):
            yield answered(batch, sampler=sampler, settings=settings)
            batch, frames = [], 0
        batch += encoded(group, sampler=sampler)
        frames += mine
    if batch:
        yield answered(batch, sampler=sampler, settings=settings)


def encoded(group: Sequence[Asked], *, sampler: Any) -> list[Asked]:
    """Return what is asked with tower outputs in place of pixels and sound."""
    prompts = [prompt for _, _, prompt in group]
    features = getattr(sampler, "features", None)
    replaced = with_features(prompts, model=sampler.model, features=features)
    return [(arm, number, prompt) for (arm, number, _), prompt in zip(group, replaced, strict=True)]


def answered(batch: Sequence[Asked], *, sampler: Any, settings: Sampling) -> list[Answer]:
    """Return the answers of a batch, in order."""
    prompts = [prompt for _, _, prompt in batch]
    groups = sampler.sample(prompts, num_generations=1, settings=settings, seeds=[0] * len(prompts))
    return [
        answer_to(prompt, arm=arm, number=number, completion=group.completions[0])
        for (arm, number, prompt), group in zip(batch, groups, strict=True)
    ]


def answer_to(prompt: Prompt, *, arm: str, number: int, completion: Any) -> Answer:
    """Return a completion as it is scored and stored."""
    return answer_about(
        prompt.sample,
        number=number,
        text=completion.text,
        arm=arm,
        tags=prompt.tags,
        has_audio=arm != FULL or any(medium.has_audio for medium in prompt.media),
        has_video=any(medium.has_video for medium in prompt.media),
        seconds=prompt.duration,
        tokens=len(completion.ids),
        finished=completion.finished,
    )


def without_audio(prompt: Prompt, *, audio: AudioSettings) -> Prompt:
    """Return the prompt about the same clip without its sound: an all-zero input of the audio encoder (paper 3.2.2)."""
    return replace(prompt, media=tuple(_silent(media, audio=audio) for media in prompt.media))


def _silent(media: Media, *, audio: AudioSettings) -> Media:
    sound = media.mel if media.mel is not None else media.speech
    if not media.has_audio or sound is None:
        return media
    zeros = torch.zeros(len(sound), audio.num_mel_bins, 2 * audio.max_source_positions)
    return replace(media, has_audio=False, mel=zeros, speech=None)
