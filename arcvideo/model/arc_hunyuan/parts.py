"""ARC-Hunyuan-Video's modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from arcvideo.model.arc_hunyuan.initialization import initialize
from arcvideo.model.arc_hunyuan.language import Decoder, LanguageModel
from arcvideo.model.arc_hunyuan.vision import Perceiver, VisionModel, VisionTransformer
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.families.parts import Named, Parts
from arcvideo.model.settings import ModelSettings
from arcvideo.model.towers.fusion import audio_for_frames

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
