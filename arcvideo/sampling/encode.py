"""Encoding each clip of a rollout once: sampling, both log-prob passes and every update then read the same features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from arcvideo.feed.prompts import Prompt
from arcvideo.model.towers.features import feature_key
from arcvideo.model.towers.media import Towers, tower_outputs
from arcvideo.types import Media


def with_features(prompts: Sequence[Prompt], *, model: Any, features: Any = None) -> list[Prompt]:
    """Return the prompts with tower outputs in place of pixels and mel; unchanged while a tower trains.

    Args:
        prompts: with or without media.
        model: an `ArcVideoForConditionalGeneration`.
        features: a `FeatureStore`, or None.
    """
    clips = iter(encoded([media for prompt in prompts for media in prompt.media], model=model, features=features))
    return [replace(prompt, media=tuple(next(clips) for _ in prompt.media)) for prompt in prompts]


@torch.no_grad()
def encoded(media: Sequence[Media], *, model: Any, features: Any = None) -> list[Media]:
    """Return the clips with tower outputs in place of pixels and mel, each encoded once; unchanged while a tower
    trains.
    """
    towers = (model.vision_model.vit, model.speech_encoder)
    clips = {feature_key(clip): clip for clip in media}
    if not clips or any(parameter.requires_grad for tower in towers for parameter in tower.parameters()):
        return list(media)
    parameter = next(model.parameters())
    patches, speech = tower_outputs(
        list(clips.values()),
        towers=Towers(encode_vision=model.encode_vision, encode_audio=model.encode_audio),
        settings=model.settings,
        features=features,
        device=parameter.device,
        dtype=parameter.dtype,
    )
    ready = {
        key: replace(clip, pixels=None, mel=None, patches=seen, speech=heard)
        for (key, clip), seen, heard in zip(clips.items(), patches, speech, strict=True)
    }
    return [ready[feature_key(clip)] for clip in media]
