"""ARC-Qwen-Video's modules, its way of adding sound, and the names of its weights.

Of the released model these names are known from its public inference code: `visual.`, `speech_encoder.` and
`mlp_speech.`; the decoder's are Qwen2.5-VL's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as nnf
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from arcvideo.model.arc_hunyuan.initialization import GELU_RMS, shrink
from arcvideo.model.arc_hunyuan.initialization import initialize as initialize_shared
from arcvideo.model.arc_hunyuan.language import LanguageModel
from arcvideo.model.arc_hunyuan.vision import VisionModel
from arcvideo.model.arc_qwen.language import Decoder, DecoderLayer
from arcvideo.model.arc_qwen.vision import Merger, VisionLayer, VisionTransformer
from arcvideo.model.families.parts import Named, Parts, text_sizes, with_rules
from arcvideo.model.settings import ModelSettings

RENAMES = (
    (r"^(model\.)?visual\.merger\.", "vision_model.perceive."),
    (r"^(model\.)?visual\.", "vision_model.vit."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^mlp_speech\.", "mlp2."),
)
"""Names of Qwen2.5-VL's files, old and new, and of the released ARC-Qwen-Video -> ours."""
TOKENS_PER_SECOND = 2
"""Temporal positions of a second, in the released checkpoints; `positions.GROUP_STEP` is two seconds of them."""


def vision(settings: ModelSettings) -> VisionModel:
    """Return tower and merger."""
    return VisionModel(
        vit=VisionTransformer(settings), perceive=Merger(settings.vision, text_width=settings.text.hidden_size)
    )


def language(settings: ModelSettings) -> LanguageModel:
    """Return decoder and head."""
    return LanguageModel(settings.text, decoder=Decoder(settings.text))


def initialize(module: nn.Module, *, settings: ModelSettings) -> None:
    """Fill the module's own parameters; modules are visited children first, so parents may overrule."""
    if isinstance(module, nn.Conv3d):
        init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    elif isinstance(module, Qwen2_5_VLRMSNorm):
        init.ones_(module.weight)
    elif isinstance(module, DecoderLayer):
        shrink(module.self_attn.o_proj, module.mlp.down_proj, layers=settings.text.num_hidden_layers)
    elif isinstance(module, VisionLayer):
        shrink(module.attn.proj, module.mlp.down_proj, layers=settings.vision.num_hidden_layers)
    elif isinstance(module, Merger):
        last: Any = module.mlp[-1]
        init.normal_(last.weight, std=settings.text.initializer_range / (GELU_RMS * last.in_features**0.5))
    else:
        initialize_shared(module, settings=settings)


def add_sound(rows: Tensor, *, frames: int, tokens: int, seconds: int, settings: ModelSettings) -> Tensor:
    """Return (groups, n, D): the rows of two seconds on the first tokens of their group.

    Args:
        rows: (R, D) projected sound, R at least seconds * rows_per_second.
        frames: of the clip, one a second; fewer share the sound equally.
        tokens: n, tokens of a group.
        seconds: of sound that count.
        settings: rows of a second.

    Raises:
        ValueError: too few rows, or more than the tokens of a group.
    """
    groups, count = settings.groups(frames), seconds * settings.rows_per_second
    if rows.shape[0] < count:
        raise ValueError(f"{seconds} s of audio need {count} rows but the clip has {rows.shape[0]}")
    each = settings.kind.frames_per_group * settings.rows_per_second
    per = max(each, math.ceil(count / groups))
    if per > tokens:
        raise ValueError(
            f"{seconds} s of audio give {per} rows a group of frames but it has only {tokens} tokens: "
            "shorten the clip, pool the audio rows or use larger images"
        )
    shares = nnf.pad(rows[:count], (0, 0, 0, groups * per - count)).view(groups, per, -1)
    return nnf.pad(shares, (0, 0, 0, tokens - per))


def describe(directory: Path) -> Mapping[str, Any]:
    """Return sizes of a Qwen2.5-VL directory (or the released ARC-Qwen-Video) under our names.

    Raises:
        ValueError: another kind of directory, or options that this family has in one form only.
    """
    from transformers import Qwen2_5_VLConfig

    path = directory / "config.json"
    written = json.loads(path.read_text())
    if "vision_config" not in written or "qwen2_5_vl" not in str(written.get("model_type", "")).lower():
        raise ValueError(f"{path} is of {written.get('model_type')!r}: give a Qwen2.5-VL directory")
    config = Qwen2_5_VLConfig.from_dict({**written, "model_type": "qwen2_5_vl"})
    text: Any = config.text_config
    picture: Any = config.vision_config
    rope = text.rope_parameters
    width = text.hidden_size // text.num_attention_heads
    frame, row, column = rope.get("mrope_section", [16, 24, 24])
    half = width // 2
    if picture.tokens_per_second != TOKENS_PER_SECOND:
        raise ValueError(
            f"{path} has tokens_per_second={picture.tokens_per_second}; this family has {TOKENS_PER_SECOND}"
        )
    return {
        "tie_word_embeddings": config.tie_word_embeddings,
        "text_config": {
            **text_sizes(text, head_dim=width),
            "rope_scaling": {"type": "dynamic", "alpha": 1.0},
            "xdrope_section": [0.0, column / half, row / half, frame / half],
            "tie_word_embeddings": config.tie_word_embeddings,
        },
        "vision_config": {
            "hidden_size": picture.hidden_size,
            "intermediate_size": picture.intermediate_size,
            "num_hidden_layers": picture.depth,
            "num_attention_heads": picture.num_heads,
            "rms_norm_eps": 1e-6,  # a constant of transformers' modules
            "patch_size": picture.patch_size,
            "num_channels": picture.in_channels,
            "anyres_pooling_size": 1,
            "window_size": picture.window_size,
            "full_attention_layers": list(picture.fullatt_block_indexes),
        },
    }


def renamed(tensors: Named, settings: ModelSettings) -> Iterator[tuple[str, Tensor]]:
    """Return tensors under our names."""
    return ((with_rules(name, RENAMES), tensor) for name, tensor in tensors)


PARTS = Parts(
    vision=vision,
    language=language,
    initialize=initialize,
    add_sound=add_sound,
    describe=describe,
    renamed=renamed,
)
