"""ARC-Hunyuan-Video's modules, and how its audio is added onto visual tokens.

Shapes: F frames, n tokens of a frame, R audio rows, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from arcvideo.model.arc_hunyuan.initialization import initialize
from arcvideo.model.arc_hunyuan.language import Decoder, LanguageModel
from arcvideo.model.arc_hunyuan.vision import Perceiver, VisionModel, VisionTransformer
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.families.parts import Named, Parts
from arcvideo.model.settings import ModelSettings

BARE = {
    "model.": "language_model.",
    "lm_head.": "language_model.",
    "vit.": "vision_model.",
    "perceive.": "vision_model.",
}
"""First name of a tensor in a directory of one part alone -> what stands before it here."""


def vision(settings: ModelSettings) -> VisionModel:
    """Return tower and merger."""
    return VisionModel(
        vit=VisionTransformer(settings.vision),
        perceive=Perceiver(settings.vision, text_width=settings.text.hidden_size),
    )


def language(settings: ModelSettings) -> LanguageModel:
    """Return decoder and head."""
    return LanguageModel(settings.text, decoder=Decoder(settings.text))


def add_sound(rows: Tensor, *, frames: int, tokens: int, seconds: int, settings: ModelSettings) -> Tensor:
    """Return (F, n, D): a second's rows on the first tokens of its frame."""
    return audio_for_frames(
        rows,
        frames=frames,
        tokens=tokens,
        seconds=seconds,
        max_num_frame=settings.max_num_frame,
        rows_per_second=settings.rows_per_second,
        exact=settings.corrections.exact_alignment,
    )


def describe(directory: Path) -> Mapping[str, Any]:
    """Return the directory's own configuration; without one the released sizes."""
    if not (directory / "config.json").exists():
        return {}
    return ArcVideoConfig.from_pretrained(directory, local_files_only=True).to_dict()


def renamed(tensors: Named, settings: ModelSettings) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors under the released names, which may lack their first part."""
    for name, tensor in tensors:
        yield next((first + name for bare, first in BARE.items() if name.startswith(bare)), name), tensor


PARTS = Parts(
    vision=vision,
    language=language,
    initialize=initialize,
    add_sound=add_sound,
    describe=describe,
    renamed=renamed,
)


def rows_per_frame(seconds: int, *, max_num_frame: int, rows_per_second: int) -> int:
    """Return how many audio rows each frame receives.

    Above `max_num_frame` seconds the division comes first, in double precision, as in the reference: at 165 s and 168 s
    its rounding gives one row more than exact arithmetic.
    """
    if seconds <= max_num_frame:
        return rows_per_second
    return math.ceil(seconds / max_num_frame * rows_per_second)


def audio_for_frames(
    rows: Tensor,
    *,
    frames: int,
    tokens: int,
    seconds: int,
    max_num_frame: int,
    rows_per_second: int,
    exact: bool = False,
) -> Tensor:
    """Return the addend for each visual token, (F, n, D): row j of a frame's share stands on token j, zeros after.

    Args:
        rows: (R, D) projected audio of one clip, R at least seconds * rows_per_second.
        frames: F of the clip.
        tokens: n, tokens of a frame.
        seconds: seconds of audio that count.
        max_num_frame: number of frames that longer audio is spread over; a clip that the plan granted fewer frames
            spreads it over those.
        rows_per_second: audio rows of a second.
        exact: with more seconds than frames, give each frame the rows of its own span. The released rule rounds every
            share up, so that the sound runs ahead of the picture and the last frames hear nothing.

    Raises:
        ValueError: too few rows, or a number of frames that the rule cannot serve.
    """
    count = seconds * rows_per_second
    if rows.shape[0] < count:
        raise ValueError(f"{seconds} s of audio need {count} rows but the clip has {rows.shape[0]}")
    groups = min(seconds, max_num_frame)
    if frames > groups:
        raise ValueError(f"{seconds} s of audio belong to {groups} frames (one a second) but the clip has {frames}")
    per = rows_per_frame(seconds, max_num_frame=frames, rows_per_second=rows_per_second)
    if per > tokens:
        raise ValueError(
            f"{seconds} s of audio give {per} rows a frame but a frame has only {tokens} tokens: "
            "shorten the clip, pool the audio rows or use larger images"
        )
    if exact and seconds > frames:
        return _own_spans(rows[:count], groups=frames, tokens=tokens)
    shares = nnf.pad(rows[:count], (0, 0, 0, frames * per - count)).view(frames, per, -1)
    return nnf.pad(shares, (0, 0, 0, tokens - per))


def _own_spans(rows: Tensor, *, groups: int, tokens: int) -> Tensor:
    """Return (F, n, D): frame i has the rows from i / F to (i + 1) / F of the clip, boundaries rounded down."""
    bounds = [i * len(rows) // groups for i in range(groups + 1)]
    return torch.stack([nnf.pad(rows[a:b], (0, 0, 0, tokens - (b - a))) for a, b in pairwise(bounds)])
