"""Fresh weights. Media tokens start with the RMS of text embeddings; otherwise one side drowns the other for long.

Loaded parameters are left alone: transformers' init functions skip what a checkpoint has filled.
"""

from __future__ import annotations

import math

from torch import nn
from transformers import initialization as init

from arcvideo.model.arc_hunyuan.language import DecoderLayer, LanguageModel
from arcvideo.model.arc_hunyuan.vision import PatchEmbeddings, Perceiver, VisionLayer
from arcvideo.model.norms import RMSNorm
from arcvideo.model.settings import ModelSettings
from arcvideo.model.towers.audio import AudioEncoder, sinusoids

GELU_RMS = 0.65
"""RMS of GELU over a standard normal."""


def initialize(module: nn.Module, *, settings: ModelSettings) -> None:
    """Fill the module's own parameters; modules are visited children first, so parents may overrule."""
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
        init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, (nn.LayerNorm, RMSNorm)):
        init.ones_(module.weight)
        if isinstance(module, nn.LayerNorm):
            init.zeros_(module.bias)
    elif isinstance(module, LanguageModel):
        init.normal_(module.model.embed_tokens.weight, std=settings.text.initializer_range)
    elif isinstance(module, DecoderLayer):
        shrink(module.self_attn.o_proj, module.mlp.down_proj, layers=settings.text.num_hidden_layers)
    elif isinstance(module, VisionLayer):
        shrink(module.self_attn.o_proj, module.mlp.dense_4h_to_h, layers=settings.vision.num_hidden_layers)
    elif isinstance(module, PatchEmbeddings):
        # Patches of normalised pixels have an RMS of about one.
        init.normal_(module.position_embedding.weight, std=0.2)
    elif isinstance(module, Perceiver):
        _initialize_perceiver(module, text_rms=settings.text.initializer_range)
    elif isinstance(module, AudioEncoder):
        table = module.embed_positions.weight
        init.copy_(table, sinusoids(table.shape[0], width=table.shape[1]))
    elif isinstance(module, nn.Sequential) and isinstance(module[0], nn.LayerNorm):
        last = module[-1]
        assert isinstance(last, nn.Linear)
        init.normal_(last.weight, std=settings.text.initializer_range / (GELU_RMS * last.in_features**0.5))


def _initialize_perceiver(module: Perceiver, *, text_rms: float) -> None:
    for vector in (module.image_newline, module.image_begin, module.image_end, module.image_sep):
        init.normal_(vector, std=1.0)
    init.constant_(module.after_rms.weight, text_rms)


def shrink(*outputs: nn.Linear, layers: int) -> None:
    """Fill the last layers of residual branches, which add up: the variance of the stream stays near its start."""
    for linear in outputs:
        init.normal_(linear.weight, std=1.0 / math.sqrt(2 * layers * linear.in_features))
