"""Tower outputs of the clips of a batch: given, read from the feature store, or computed in two calls.

Shapes: F frames, S image side, P patches of a frame, W tower width, C mel chunks, M mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arcvideo.model.settings import ModelSettings
from arcvideo.model.towers.features import FeatureStore, feature_key
from arcvideo.types import Media

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
FRAMES_PER_CALL = 64
"""Frames the vision tower reads at once; bounds the memory of a long video."""


@dataclass(frozen=True)
class Towers:
    """The two encoders, as functions."""

    encode_vision: Callable[[Tensor], Tensor]
    """(F, 3, S, S) normalised -> (F, P, W); or groups (G, 3, 2, S, S) -> (G, P, W)."""
    encode_audio: Callable[[Tensor], Tensor]
    """(C, M, T) -> (C, positions, W)."""


def grouped(pixels: Tensor, *, per: int) -> Tensor:
    """Return frames (F, 3, S, S) as groups (G, 3, per, S, S), the last frame repeated where one is missing; as they are
    where a group is one frame."""
    if per == 1:
        return pixels
    missing = -len(pixels) % per
    whole = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]) if missing else pixels
    return whole.unflatten(0, (-1, per)).transpose(1, 2)


def normalize_pixels(pixels: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return (F, 3, S, S) uint8 RGB as the vision tower reads it."""
    mean, std = (torch.tensor(x, device=pixels.device).view(1, 3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
    return ((pixels.float() / 255 - mean) / std).to(dtype)


def tower_outputs(
    media: Sequence[Media],
    *,
    towers: Towers,
    settings: ModelSettings,
    features: FeatureStore | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return per clip its patches (F, P, W) and its rows (C, positions, W) on `device`.

    Args:
        media: clips.
        towers: the encoders.
        settings: sizes, for the picture of clips that have none.
        features: cache to read and fill; None while a tower trains.
        device: of the model.
        dtype: of the model.

    Raises:
        ValueError: a clip that lacks what its flags promise.
    """
    cached = {
        key: stored
        for key in map(feature_key, media)
        if features is not None and (stored := features.load(key)) is not None
    }
    patches = [
        item.patches if item.patches is not None else cached.get(feature_key(item), (None,))[0] for item in media
    ]
    speech = [
        item.speech if item.speech is not None else cached.get(feature_key(item), (None, None))[1] for item in media
    ]
    fresh = [i for i in range(len(media)) if patches[i] is None or speech[i] is None]
    cached_patches = [part if part is None else part.to(device, dtype) for part in patches]
    cached_speech = [part if part is None else part.to(device, dtype) for part in speech]
    seen = _look(media, cached_patches, towers=towers, settings=settings, device=device, dtype=dtype)
    listened = _listen(media, cached_speech, towers=towers, settings=settings, device=device, dtype=dtype)
    if features is not None:
        for i in fresh:
            key = feature_key(media[i])
            if not features.has(key):
                features.save(key, patches=seen[i], speech=listened[i])
    return seen, listened


def _look(
    media: Sequence[Media],
    known: Sequence[Tensor | None],
    *,
    towers: Towers,
    settings: ModelSettings,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Return the patches of every clip; all unknown frames go through the tower together, a blank frame once."""
    pixels: dict[int, Tensor] = {}
    per = settings.kind.frames_per_group
    blank = [i for i, item in enumerate(media) if known[i] is None and not item.has_video]
    for i, item in enumerate(media):
        if known[i] is not None or not item.has_video:
            continue
        if item.pixels is None or len(item.pixels) != item.frame_count:
            raise ValueError(f"media {item.key} has video but no pixels for its {item.frame_count} frames")
        pixels[i] = grouped(normalize_pixels(item.pixels.to(device), dtype=dtype), per=per)
    side = settings.vision.force_image_size
    nothing = torch.zeros(per, settings.vision.num_channels, side, side, device=device, dtype=dtype)
    zero = [grouped(nothing, per=per)] if blank else []
    stacked = [*pixels.values(), *zero]
    encoded = [towers.encode_vision(part) for part in torch.cat(stacked).split(FRAMES_PER_CALL)] if stacked else []
    parts = iter(torch.cat(encoded).split([len(part) for part in stacked]) if stacked else ())
    fresh = {i: next(parts) for i in pixels}
    if blank:
        fresh |= dict.fromkeys(blank, next(parts))
    result = []
    for i, item in enumerate(media):
        patches = known[i]
        groups = settings.groups(item.frame_count)
        result.append(patches if patches is not None else fresh[i].expand(groups, -1, -1))
    return result


def _listen(
    media: Sequence[Media],
    known: Sequence[Tensor | None],
    *,
    towers: Towers,
    settings: ModelSettings,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Return the audio rows of every clip; all unknown chunks go through the tower together."""
    mels: dict[int, Tensor] = {}
    for i, item in enumerate(media):
        if known[i] is None:
            if item.mel is None and item.has_audio:
                raise ValueError(f"media {item.key} has audio but neither mel nor speech")
            mels[i] = (_no_sound(item, settings=settings) if item.mel is None else item.mel).to(device, dtype)
    fresh: dict[int, Tensor] = {}
    if mels:
        rows = towers.encode_audio(torch.cat(list(mels.values())))
        fresh = dict(zip(mels, rows.split([len(mel) for mel in mels.values()]), strict=True))
    return [fresh[i] if part is None else part for i, part in enumerate(known)]


def _no_sound(item: Media, *, settings: ModelSettings) -> Tensor:
    """Return the all-zero mel of a clip without sound (paper 3.2.2), (C, M, 2 * positions); silence has another one."""
    audio = settings.audio
    chunks = math.ceil(item.seconds * 50 / audio.max_source_positions)
    return torch.zeros(chunks, audio.num_mel_bins, 2 * audio.max_source_positions)
