"""A model of a few thousand parameters, its ids, and rows for it."""

from __future__ import annotations

import torch
from torch import Tensor

from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.positions import replace_newlines, video_ids, xd_positions
from arcvideo.model.settings import AudioSettings, ModelSettings, TextSettings, VisionSettings
from arcvideo.model.special import SpecialIds
from arcvideo.types import Media, Segments

SPECIAL = SpecialIds(
    start=50, end=51, eos=60, sep=52, pad=53, img_open=54, img_close=55, newline=56, image=57, vid_open=58, vid_close=59
)

SETTINGS = ModelSettings(
    text=TextSettings(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_head_dim=16,
        rope_alpha=1.0,
    ),
    vision=VisionSettings(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_image_size=128,
        force_image_size=128,
    ),
    audio=AudioSettings(
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=100,
    ),
    max_num_frame=6,
    audio_pooling=10,
)


def small_model(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> ArcVideoForConditionalGeneration:
    """Return a fresh model with visible weights (media as loud as text, norms not all one)."""
    torch.manual_seed(seed)
    model = ArcVideoForConditionalGeneration(ArcVideoConfig.from_settings(SETTINGS, special=SPECIAL)).to(dtype)
    model.requires_grad_(True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "rms" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.get_input_embeddings().weight.mul_(20)
    return model


def clip(*, frames: int = 2, seed: int = 0, key: str | None = None) -> Media:
    """Return a clip of noise with `frames` frames and seconds."""
    random = torch.Generator().manual_seed(seed)
    return Media(
        key=key or f"clip-{seed}",
        frame_count=frames,
        seconds=frames,
        has_video=True,
        has_audio=True,
        pixels=torch.randint(0, 256, (frames, 3, 128, 128), generator=random).to(torch.uint8),
        mel=torch.randn(-(-frames // 2), 8, 200, generator=random),
    )


def prefix(*, frames: int = 2) -> Tensor:
    """Return start, video: the ids before newline replacement."""
    return torch.cat([torch.tensor([SPECIAL.start]), video_ids(2, frames=frames, special=SPECIAL)])


def text(length: int, *, seed: int) -> Tensor:
    return torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(seed))


class Row:
    """A packed row under construction."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.parents: list[int] = []

    def add(self, ids: Tensor, *, parent: int = -1) -> int:
        """Append a segment and return its index; positions continue where the parent ends."""
        offset = 0 if parent < 0 else len(self.ids[parent])
        self.ids.append(ids)
        self.positions.append(xd_positions(ids, SPECIAL, offset=offset))
        self.parents.append(parent)
        return len(self.parents) - 1

    @property
    def starts(self) -> list[int]:
        return [0, *torch.tensor([len(part) for part in self.ids]).cumsum(0).tolist()]

    def inputs(self) -> dict:
        """Return what forward takes for the row."""
        return {
            "input_ids": replace_newlines(torch.cat(self.ids), special=SPECIAL),
            "position_ids": torch.cat(self.positions, dim=1),
            "segments": Segments(
                starts=torch.tensor(self.starts, dtype=torch.int32),
                parents=torch.tensor(self.parents, dtype=torch.int32),
            ),
        }
