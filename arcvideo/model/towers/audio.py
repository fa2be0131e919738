"""The audio tower: Whisper's encoder under its usual names, and the projector behind it.

Shapes: C chunks, M mel bins, T mel frames (2 * positions), S positions, W width, H heads, h head width, D text width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from arcvideo.model.attention import attend_fully
from arcvideo.model.recompute import run_layers
from arcvideo.model.settings import AudioSettings


class AudioAttention(nn.Module):
    def __init__(self, settings: AudioSettings) -> None:
        super().__init__()
        width = settings.d_model
        self.heads = settings.encoder_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_CSW: Tensor) -> Tensor:
        q, k, v = (
            proj(x_CSW).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out_CHSh = attend_fully(q, k, v)
        return self.out_proj(out_CHSh.transpose(1, 2).flatten(2))


class AudioLayer(GradientCheckpointingLayer):
    def __init__(self, settings: AudioSettings) -> None:
        super().__init__()
        self.self_attn = AudioAttention(settings)
        self.self_attn_layer_norm = nn.LayerNorm(settings.d_model)
        self.fc1 = nn.Linear(settings.d_model, settings.encoder_ffn_dim)
        self.fc2 = nn.Linear(settings.encoder_ffn_dim, settings.d_model)
        self.final_layer_norm = nn.LayerNorm(settings.d_model)

    def forward(self, x_CSW: Tensor) -> Tensor:
        x_CSW = x_CSW + self.self_attn(self.self_attn_layer_norm(x_CSW))
        return x_CSW + self.fc2(nnf.gelu(self.fc1(self.final_layer_norm(x_CSW))))


class AudioEncoder(nn.Module):
    """Log-mel (C, M, T) -> rows (C, S, W), 50 a second. Silence inside a chunk is attended, as in Whisper."""

    def __init__(self, settings: AudioSettings) -> None:
        super().__init__()
        width = settings.d_model
        self.frames = 2 * settings.max_source_positions
        self.conv1 = nn.Conv1d(settings.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(settings.max_source_positions, width)
        self.layers = nn.ModuleList(AudioLayer(settings) for _ in range(settings.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)
        self.recompute = "none"

    def forward(self, mel_CMT: Tensor) -> Tensor:
        if mel_CMT.shape[-1] != self.frames:
            raise ValueError(
                f"a mel chunk must have {self.frames} frames, got {mel_CMT.shape[-1]}: pad it with silence"
            )
        x = nnf.gelu(self.conv2(nnf.gelu(self.conv1(mel_CMT))))
        # Looked up, not read: weights that are kept elsewhere (offloading) come when their module is called.
        x_CSW = x.transpose(1, 2) + self.embed_positions(torch.arange(x.shape[-1], device=x.device))
        return self.layer_norm(run_layers(self.layers, x_CSW, recompute=self.recompute))


def audio_projector(width: int, *, text_width: int) -> nn.Sequential:
    """Return `mlp2`: rows (..., W) -> (..., D)."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, text_width), nn.GELU(), nn.Linear(text_width, text_width)
    )


def pool_rows(rows_CSW: Tensor, *, pooling: int) -> Tensor:
    """Return means over `pooling` consecutive rows, chunks joined in time: (C * S / pooling, W)."""
    chunks, positions, width = rows_CSW.shape
    if pooling == 1:
        return rows_CSW.reshape(chunks * positions, width)
    return rows_CSW.reshape(chunks * positions // pooling, pooling, width).mean(dim=1)


def sinusoids(length: int, *, width: int) -> Tensor:
    """Return Whisper's fixed positions, (length, width): sines, then cosines."""
    step = math.log(10000) / (width // 2 - 1)
    angle = torch.arange(length).unsqueeze(1) * torch.exp(-step * torch.arange(width // 2))
    return torch.cat([angle.sin(), angle.cos()], dim=1)
