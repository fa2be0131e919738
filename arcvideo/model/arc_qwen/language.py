"""Qwen2.5-VL's decoder: transformers' own layers under our rule of who sees whom.

The rule comes through transformers' attention interface: a layer calls the function that is registered under our name,
which hands queries, keys and values to `attend` with the plan of the row.
Shapes: B batch, L tokens, D width, H query heads, G key heads, h head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLRMSNorm

from arcvideo.model.attention import AttentionPlan, attend, attend_openly
from arcvideo.model.output import Trace
from arcvideo.model.recompute import run_layer
from arcvideo.model.settings import TextSettings

RULE = "arcvideo"
"""Name of our rule among transformers' kinds of attention."""
Rope = tuple[Tensor, Tensor]


def by_plan(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    plan: AttentionPlan,
    ours: Any = None,
    weights: list[Tensor] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return (B, L, H, h): transformers' attention function, given (B, heads, tokens, h) of each.

    Args:
        module: the layer's attention, which knows its number.
        query: of the new tokens.
        key: of all tokens, cached ones first.
        value: likewise.
        attention_mask: None; the plan says it all.
        plan: who sees whom.
        ours: a cache that attends itself, or None.
        weights: where to put the attention weights, if they are asked for.
        others: what transformers tells every kind of attention.
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if ours is not None:
        return ours.attend(q, k, v, layer=module.layer_idx), None
    k, v = k[:, : plan.keys], v[:, : plan.keys]
    if weights is not None:
        out, seen = attend_openly(q, k, v, plan=plan)
        weights.append(seen)
        return out, None
    return attend(q, k, v, plan=plan), None


AttentionInterface.register(RULE, by_plan)


class _Passing:
    """In the place of transformers' cache for one that takes keys and values in `attend`."""

    def update(self, key: Tensor, value: Tensor, layer: int, *others: Any) -> tuple[Tensor, Tensor]:
        return key, value


def text_config(settings: TextSettings) -> Qwen2_5_VLTextConfig:
    """Return the sizes as transformers' layers read them."""
    config = Qwen2_5_VLTextConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_key_value_heads,
        rms_norm_eps=settings.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
    )
    config._attn_implementation_internal = RULE
    return config


class DecoderLayer(Qwen2_5_VLDecoderLayer):
    """A layer that is called as our own are."""

    def forward(  # type: ignore[override]
        self, x: Tensor, rope: Rope, plan: AttentionPlan, cache: Any = None, weights: list[Tensor] | None = None
    ) -> Tensor:
        own = hasattr(cache, "attend")
        layer: Any = super()  # what it is given beside its own arguments reaches the attention function
        return layer.forward(
            x,
            position_embeddings=rope,
            past_key_values=_Passing() if own else cache,
            plan=plan,
            ours=cache if own else None,
            weights=weights,
        )


class Decoder(nn.Module):
    """Embedding, layers and norm under transformers' names."""

    def __init__(self, settings: TextSettings) -> None:
        super().__init__()
        config = text_config(settings)
        self.settings = settings
        self.embed_tokens = nn.Embedding(settings.vocab_size, settings.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, number) for number in range(settings.num_hidden_layers))
        self.norm = Qwen2_5_VLRMSNorm(settings.hidden_size, eps=settings.rms_norm_eps)
        self.recompute = "none"

    def forward(
        self, x: Tensor, *, positions: Tensor, plan: AttentionPlan, cache: Any = None, trace: Trace | None = None
    ) -> Tensor:
        """Return final hidden states, shaped like x (..., L, D); positions are (..., 4, L)."""
        shape = x.shape
        if packed := x.dim() == 2:
            x, positions = x.unsqueeze(0), positions.unsqueeze(0)
        rope = rope_tables(positions, settings=self.settings, dtype=x.dtype)
        recompute = self.recompute if cache is None else "none"
        for layer in self.layers:
            if trace is not None:
                trace.keep(x[0] if packed else x)
                x = layer(x, rope, plan, cache, trace.attentions)
            else:
                x = run_layer(layer, x, rope, plan, cache, recompute=recompute)
        x = self.norm(x).view(shape)
        if trace is not None:
            trace.keep(x)
        return x


def rope_tables(positions: Tensor, *, settings: TextSettings, dtype: torch.dtype) -> Rope:
    """Return cos and sin, each (B, L, h), of positions (B, 4, L).

    The frequencies are cut into bands that read frame, row and column; the index is not read.
    """
    width = settings.attention_head_dim
    exact = torch.promote_types(dtype, torch.float32)
    exponent = torch.arange(0, width, 2, dtype=exact, device=positions.device) / width
    _, column, row, frame = (int(share * (width // 2)) for share in settings.xdrope_section)
    sizes = torch.tensor([frame, row, column])
    axis = torch.repeat_interleave(torch.tensor([3, 2, 1]), sizes).to(positions.device)
    angles = positions.to(exact).index_select(-2, axis).transpose(-1, -2) * (1.0 / settings.rope_theta**exponent)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)
