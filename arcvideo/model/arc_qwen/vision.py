"""Qwen2.5-VL's vision tower and merger: transformers' own modules, called for many groups of frames at once.

Shapes: G groups of two frames, S side (pixels), P patches of a group, W width, H heads, h head width, D text width.
Patches stand cell by cell: the four of a cell one after the other, cells row by row.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLPatchMerger,
    Qwen2_5_VLVisionBlock,
    apply_rotary_pos_emb_vision,
)

from arcvideo.model.attention import attend_fully
from arcvideo.model.recompute import run_layer
from arcvideo.model.settings import ModelSettings, VisionSettings

MERGE = 2
"""Patches on the side of a cell."""
FRAMES = 2
"""Frames of a group."""
THETA = 10000.0
"""Base of the tower's rope."""
Rope = tuple[Tensor, Tensor]


def vision_config(settings: ModelSettings) -> Qwen2_5_VLVisionConfig:
    """Return the sizes as transformers' modules read them."""
    sizes = settings.vision
    return Qwen2_5_VLVisionConfig(
        depth=sizes.num_hidden_layers,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_heads=sizes.num_attention_heads,
        in_channels=sizes.num_channels,
        patch_size=sizes.patch_size,
        spatial_merge_size=MERGE,
        temporal_patch_size=FRAMES,
        window_size=sizes.window_size,
        out_hidden_size=settings.text.hidden_size,
        fullatt_block_indexes=list(sizes.full_attention_layers),
    )


class VisionLayer(Qwen2_5_VLVisionBlock):
    """One layer; every group on its own, attention inside runs of patches."""

    def forward(self, x_GPW: Tensor, rope: Rope, runs: tuple[int, ...]) -> Tensor:  # type: ignore[override]
        """Return (G, P, W).

        Args:
            x_GPW: patches, window by window.
            rope: cos and sin (P, h).
            runs: lengths of the runs in which patches see each other.
        """
        qkv = self.attn.qkv(self.norm1(x_GPW)).unflatten(-1, (3, self.attn.num_heads, -1))
        q, k, v = qkv.unbind(-3)
        q, k = apply_rotary_pos_emb_vision(q, k, *rope)
        split = (x.transpose(1, 2).split(runs, dim=2) for x in (q, k, v))
        out = torch.cat([attend_fully(*run) for run in zip(*split, strict=True)], dim=2)
        x_GPW = x_GPW + self.attn.proj(out.transpose(1, 2).flatten(2))
        return x_GPW + self.mlp(self.norm2(x_GPW))


class VisionTransformer(nn.Module):
    """Normalised pixels (G, 3, 2, S, S) -> patches (G, P, W)."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        config = vision_config(settings)
        self.settings = settings.vision
        self.patch_embed = Qwen2_5_VisionPatchEmbed(
            patch_size=config.patch_size,
            temporal_patch_size=config.temporal_patch_size,
            in_channels=config.in_channels,
            embed_dim=config.hidden_size,
        )
        self.blocks = nn.ModuleList(VisionLayer(config) for _ in range(config.depth))
        self.recompute = "none"

    def forward(self, pixels: Tensor) -> Tensor:
        size, groups = self.settings.patch_size, len(pixels)
        side = pixels.shape[-1] // size // MERGE
        # (G, 3, 2, rows, 2, p, columns, 2, p) -> cell by cell, then channel, frame and place inside the patch.
        cut = pixels.unflatten(4, (side, MERGE, size)).unflatten(3, (side, MERGE, size))
        cut = cut.permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(-1, pixels.shape[1] * FRAMES * size * size)
        x = self.patch_embed(cut).view(groups, side * side, MERGE**2, -1)
        order, back, windows = _windows(side, max(self.settings.window_size // MERGE // size, 1))
        rope = self._rope(side, order=order, like=x)
        x = x[:, order.to(x.device)].flatten(1, 2)
        whole = (x.shape[1],)
        for number, block in enumerate(self.blocks):
            runs = whole if number in self.settings.full_attention_layers else windows
            x = run_layer(block, x, rope, runs, recompute=self.recompute)
        return x.unflatten(1, (-1, MERGE**2))[:, back.to(x.device)].flatten(1, 2)

    def _rope(self, side: int, *, order: Tensor, like: Tensor) -> Rope:
        """Return cos and sin (P, h) float32 of the patches, window by window: half of the pairs read rows."""
        width = self.settings.hidden_size // self.settings.num_attention_heads // 2
        frequencies = 1.0 / THETA ** (torch.arange(0, width, 2, dtype=torch.float32, device=like.device) / width)
        cell, inside = torch.arange(side), torch.arange(MERGE)
        rows = (cell[:, None, None, None] * MERGE + inside[:, None]).expand(side, side, MERGE, MERGE)
        columns = (cell[None, :, None, None] * MERGE + inside).expand(side, side, MERGE, MERGE)
        both = torch.stack([rows, columns], dim=-1).reshape(side * side, MERGE**2, 2)[order].flatten(0, 1)
        angles = (both.to(like.device)[..., None].float() * frequencies).flatten(1)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


class Merger(Qwen2_5_VLPatchMerger):
    """Patches (G, P, W) -> tokens (G, P / 4, D), cells row by row."""

    def __init__(self, sizes: VisionSettings, *, text_width: int) -> None:
        super().__init__(dim=text_width, context_dim=sizes.hidden_size, spatial_merge_size=MERGE)

    def forward(self, patches_GPW: Tensor) -> Tensor:
        return super().forward(patches_GPW).unflatten(0, (len(patches_GPW), -1))


@cache
def _windows(side: int, window: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return the cells window by window, the way back, and how many patches each window has."""
    cells = torch.arange(side * side).view(side, side)
    parts = [part.flatten() for rows in cells.split(window) for part in rows.split(window, dim=1)]
    order = torch.cat(parts)
    return order, order.argsort(), tuple(len(part) * MERGE**2 for part in parts)
