"""The dense decoder with four-axis rope. Attribute names are the released key names.

Shapes: L tokens (or B, L), D width, H query heads, G key heads, h head width, V vocabulary.
A leading batch is optional.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from arcvideo.model.arc_hunyuan.head import Head
from arcvideo.model.attention import AttentionPlan, attend, attend_openly
from arcvideo.model.fused import kernel
from arcvideo.model.norms import RMSNorm, rms_norm
from arcvideo.model.output import Trace
from arcvideo.model.recompute import run_layer
from arcvideo.model.settings import TextSettings

Rope = tuple[Tensor, Tensor]


def rope_tables(positions: Tensor, *, settings: TextSettings, dtype: torch.dtype, across_halves: bool = False) -> Rope:
    """Return cos and sin, each (..., L, 1, h), of positions (..., 4, L).

    The frequencies are cut into contiguous bands that read index, column, row and frame. Angles are at least fp32 and
    rounded to the activation dtype only after cos and sin.

    Args:
        positions: (..., 4, L).
        settings: of the decoder.
        dtype: of the activations.
        across_halves: HunyuanOCR's way: the bands, twice as wide, are cut out of both halves of a head laid end to end,
            so that the two entries of a pair read different axes.
    """
    width = settings.attention_head_dim
    exact = torch.promote_types(dtype, torch.float32)
    base = settings.rope_theta * settings.rope_alpha ** (width / (width - 2))
    exponent = torch.arange(0, width, 2, dtype=exact, device=positions.device) / width
    frequencies = 1.0 / base**exponent
    sizes = tuple(int(share * (width // 2)) for share in settings.xdrope_section)
    if across_halves:
        axis = _bands(tuple(2 * size for size in sizes), positions.device)
        both = torch.cat([frequencies, frequencies])
        angles = (positions.to(exact).index_select(-2, axis).transpose(-1, -2) * both).unsqueeze(-2)
    else:
        axis = _bands(sizes, positions.device)
        angles = positions.to(exact).index_select(-2, axis).transpose(-1, -2) * frequencies
        angles = torch.cat([angles, angles], dim=-1).unsqueeze(-2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


@functools.cache
def _bands(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return (h / 2,) int64: which axis each frequency reads. Kept: a CUDA graph must not copy from the host."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Return x (..., L, heads, h) rotated; frequency k pairs entries k and k + h / 2."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def turned(x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return heads x (..., L, heads, h) rotated, then normalised."""
    return rms_norm(rotate(x, (cos, sin)), weight, eps)


def gated(gate_up: Tensor) -> Tensor:
    """Return a * silu(b) of the fused projection's halves."""
    a, b = gate_up.chunk(2, dim=-1)
    return a * nnf.silu(b)


class Attention(nn.Module):
    """Grouped-query attention; q and k are normalised AFTER rope."""

    fused = False
    """Whether rope and norm are one compiled kernel."""

    def __init__(self, settings: TextSettings, *, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.groups = settings.num_attention_heads // settings.num_key_value_heads
        self.head_dim = settings.attention_head_dim
        rows = (settings.num_attention_heads + 2 * settings.num_key_value_heads) * self.head_dim
        self.qkv_proj = nn.Linear(settings.hidden_size, rows, bias=False)
        self.o_proj = nn.Linear(settings.num_attention_heads * self.head_dim, settings.hidden_size, bias=False)
        self.query_layernorm = RMSNorm(self.head_dim, eps=settings.rms_norm_eps)
        self.key_layernorm = RMSNorm(self.head_dim, eps=settings.rms_norm_eps)

    def forward(
        self, x: Tensor, *, rope: Rope, plan: AttentionPlan, cache: Any = None, weights: list[Tensor] | None = None
    ) -> Tensor:
        # Rows of qkv are grouped by key head: its queries, then one key, then one value.
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.groups + 2, self.head_dim))
        q, k, v = qkv.split([self.groups, 1, 1], dim=-2)
        v = v.squeeze(-2)
        # Under autocast rope and norms raise q and k to fp32; the kernels want one dtype.
        q = self._turned(q.flatten(-3, -2), rope, self.query_layernorm).to(v.dtype)
        k = self._turned(k.squeeze(-2), rope, self.key_layernorm).to(v.dtype)
        if hasattr(cache, "attend"):  # a cache whose rows share a prefix knows itself who sees whom
            return self.o_proj(cache.attend(q, k, v, layer=self.layer).flatten(-2))
        if cache is not None:
            held = cache.update(k.transpose(1, 2), v.transpose(1, 2), self.layer)
            k, v = (past.transpose(1, 2)[:, : plan.keys] for past in held)
        if weights is not None:
            out, seen = attend_openly(q, k, v, plan=plan)
            weights.append(seen)
            return self.o_proj(out.flatten(-2))
        return self.o_proj(attend(q, k, v, plan=plan).flatten(-2))

    def _turned(self, x: Tensor, rope: Rope, norm: RMSNorm) -> Tensor:
        if self.fused:
            return kernel(turned, fused=True)(x, *rope, norm.weight, norm.eps)
        return norm(rotate(x, rope))


class MLP(nn.Module):
    """down(a * silu(b)): the SECOND half of the fused projection goes through silu."""

    fused = False
    """Whether the gated unit is one compiled kernel."""

    def __init__(self, settings: TextSettings) -> None:
        super().__init__()
        self.gate_and_up_proj = nn.Linear(settings.hidden_size, 2 * settings.intermediate_size, bias=False)
        self.down_proj = nn.Linear(settings.intermediate_size, settings.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(kernel(gated, fused=self.fused)(self.gate_and_up_proj(x)))


class DecoderLayer(GradientCheckpointingLayer):
    def __init__(self, settings: TextSettings, *, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(settings.hidden_size, eps=settings.rms_norm_eps)
        self.self_attn = Attention(settings, layer=layer)
        self.post_attention_layernorm = RMSNorm(settings.hidden_size, eps=settings.rms_norm_eps)
        self.mlp = MLP(settings)

    def forward(
        self, x: Tensor, rope: Rope, plan: AttentionPlan, cache: Any = None, weights: list[Tensor] | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope=rope, plan=plan, cache=cache, weights=weights)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, settings: TextSettings, *, across_halves: bool = False) -> None:
        super().__init__()
        self.settings = settings
        self.across_halves = across_halves
        self.embed_tokens = nn.Embedding(settings.vocab_size, settings.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(settings, layer=i) for i in range(settings.num_hidden_layers))
        self.norm = RMSNorm(settings.hidden_size, eps=settings.rms_norm_eps)
        self.recompute = "none"

    def forward(
        self, x: Tensor, *, positions: Tensor, plan: AttentionPlan, cache: Any = None, trace: Trace | None = None
    ) -> Tensor:
        """Return final hidden states, shaped like x (..., L, D); positions are (..., 4, L)."""
        rope = rope_tables(positions, settings=self.settings, dtype=x.dtype, across_halves=self.across_halves)
        recompute = self.recompute if cache is None else "none"
        for layer in self.layers:
            if trace is not None:
                trace.keep(x)
                x = layer(x, rope, plan, cache, trace.attentions)
            else:
                x = run_layer(layer, x, rope, plan, cache, recompute=recompute)
        x = self.norm(x)
        if trace is not None:
            trace.keep(x)
        return x


class LanguageModel(nn.Module):
    """Decoder and head; the head is tied to the embedding by the model class."""

    def __init__(self, settings: TextSettings, *, decoder: nn.Module) -> None:
        super().__init__()
        self.model: Any = decoder
        self.lm_head = Head(settings.hidden_size, settings.vocab_size, bias=False)
