"""The vision tower: transformer over patches, and the merger that makes language-model tokens of them.

Shapes: F frames, S side (pixels), P patches of a frame, W width, H heads, h head width, g grid side, D text width,
n = g * (g + 1) + 2 tokens of a frame. Attribute names are the released key names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from arcvideo.model.attention import attend_fully
from arcvideo.model.norms import RMSNorm
from arcvideo.model.recompute import run_layers
from arcvideo.model.settings import VisionSettings


class PatchEmbeddings(nn.Module):
    """Patches plus their interpolated positions."""

    def __init__(self, settings: VisionSettings, *, resized: bool = False) -> None:
        super().__init__()
        self.resized = resized
        patch, width = settings.patch_size, settings.hidden_size
        self.side = settings.max_image_size // patch
        self.patch_embedding = nn.Conv2d(settings.num_channels, width, kernel_size=patch, stride=patch)
        # Row 0 is a class slot that nothing uses.
        self.position_embedding = nn.Embedding(self.side**2 + 1, width)

    def positions(self, grid: int, *, device: torch.device | None = None) -> Tensor:
        """Return the position table for `grid` x `grid` patches, (grid * grid, W)."""
        # Looked up, not read: weights that are kept elsewhere (offloading) come when their module is called.
        rows = torch.arange(1, self.side**2 + 1, device=device)
        table_PW = self.position_embedding(rows)
        if grid == self.side:
            return table_PW
        image = table_PW.to(torch.promote_types(table_PW.dtype, torch.float32)).view(1, self.side, self.side, -1)
        # As released, the scale factor itself, not the target size, places the samples: (grid + 0.1) / side.
        how = {"size": (grid, grid)} if self.resized else {"scale_factor": ((grid + 0.1) / self.side,) * 2}
        resized = nnf.interpolate(image.permute(0, 3, 1, 2), mode="bilinear", align_corners=False, **how)
        return resized.flatten(2)[0].T.to(table_PW.dtype)

    def forward(self, pixels_F3SS: Tensor) -> Tensor:
        patches_FWgg = self.patch_embedding(pixels_F3SS)
        return patches_FWgg.flatten(2).transpose(1, 2) + self.positions(
            patches_FWgg.shape[-1], device=patches_FWgg.device
        )


class VisionAttention(nn.Module):
    """Bidirectional attention; rows of qkv are grouped per head: q, k, v."""

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.heads = settings.num_attention_heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x_FPW: Tensor) -> Tensor:
        frames, patches, width = x_FPW.shape
        qkv = self.qkv_proj(x_FPW).view(frames, patches, self.heads, 3, width // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        out_FHPh = attend_fully(q, k, v)
        return self.o_proj(out_FHPh.transpose(1, 2).reshape(frames, patches, width))


class VisionMLP(nn.Module):
    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(settings.hidden_size, settings.intermediate_size)
        self.dense_4h_to_h = nn.Linear(settings.intermediate_size, settings.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(nnf.gelu(self.dense_h_to_4h(x)))


class VisionLayer(GradientCheckpointingLayer):
    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(settings.hidden_size, eps=settings.rms_norm_eps)
        self.self_attn = VisionAttention(settings)
        self.post_attention_layernorm = nn.LayerNorm(settings.hidden_size, eps=settings.rms_norm_eps)
        self.mlp = VisionMLP(settings)

    def forward(self, x_FPW: Tensor) -> Tensor:
        x_FPW = x_FPW + self.self_attn(self.input_layernorm(x_FPW))
        return x_FPW + self.mlp(self.post_attention_layernorm(x_FPW))


class VisionTransformer(nn.Module):
    """Normalised pixels (F, 3, S, S) -> patches (F, P, W); every frame on its own."""

    def __init__(self, settings: VisionSettings, *, resized: bool = False) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(settings, resized=resized)
        self.layers = nn.ModuleList(VisionLayer(settings) for _ in range(settings.num_hidden_layers))
        self.recompute = "none"

    def forward(self, pixels_F3SS: Tensor) -> Tensor:
        return run_layers(self.layers, self.embeddings(pixels_F3SS), recompute=self.recompute)


class Perceiver(nn.Module):
    """The conv merger: patches (F, P, W) -> tokens (F, n, D), begin, rows of cells with a newline each, end."""

    def __init__(self, settings: VisionSettings, *, text_width: int) -> None:
        super().__init__()
        width, eps = settings.hidden_size, settings.rms_norm_eps
        self.pooling = settings.anyres_pooling_size
        self.before_rms = RMSNorm(width, eps=eps)
        self.proj = nn.Sequential(
            nn.Conv2d(width, 2 * width, kernel_size=2, stride=2),
            nn.GELU(),
            nn.Conv2d(2 * width, 4 * width, kernel_size=1),
        )
        self.image_newline = nn.Parameter(torch.zeros(4 * width))
        self.mlp = nn.Linear(4 * width, text_width)
        self.image_begin = nn.Parameter(torch.zeros(text_width))
        self.image_end = nn.Parameter(torch.zeros(text_width))
        # Part of the released weights; separates still images, which videos do not have.
        self.image_sep = nn.Parameter(torch.zeros(text_width))
        self.after_rms = RMSNorm(text_width, eps=eps)

    def forward(self, patches_FPW: Tensor) -> Tensor:
        frames, patches, width = patches_FPW.shape
        side = int(patches**0.5)
        image = self.before_rms(patches_FPW).transpose(1, 2).reshape(frames, width, side, side)
        cells = nnf.avg_pool2d(self.proj(image), kernel_size=self.pooling)
        newline = self.image_newline.view(1, -1, 1, 1).expand(frames, -1, cells.shape[-2], 1)
        rows = torch.cat([cells, newline], dim=-1).flatten(2).transpose(1, 2)
        begin, end = (edge.expand(frames, 1, -1) for edge in (self.image_begin, self.image_end))
        return self.after_rms(torch.cat([begin, self.mlp(rows), end], dim=1))


class VisionModel(nn.Module):
    """Holder of the two halves under their released names; the model calls them one by one."""

    def __init__(self, *, vit: nn.Module, perceive: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.perceive = perceive

    def forward(self, pixels_F3SS: Tensor) -> Tensor:
        return self.perceive(self.vit(pixels_F3SS))
