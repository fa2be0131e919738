"""HunyuanOCR's modules: ARC's classes with two differences, and the way from its key names to the released ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arcvideo.model.arc_hunyuan.language import Decoder, LanguageModel
from arcvideo.model.arc_hunyuan.parts import PARTS as ARC
from arcvideo.model.arc_hunyuan.vision import Perceiver, VisionModel, VisionTransformer
from arcvideo.model.families.parts import Named, text_sizes, with_rules
from arcvideo.model.settings import ModelSettings

RENAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(vision_tower|vit)\.", "vit."),
    (r"^vision_tower\.", "vit."),
    (r"^model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^vit\.(patch_merger|perceive)\.", "vision_model.perceive."),
    (r"^vit\.", "vision_model.vit."),
    (r"perceive\.proj_conv\.", "perceive.proj.0."),
    (r"perceive\.proj_out\.", "perceive.proj.2."),
    (r"\.layer_norm1\.", ".input_layernorm."),
    (r"\.layer_norm2\.", ".post_attention_layernorm."),
    (r"(vit\..*\.mlp)\.fc1\.", r"\1.dense_h_to_4h."),
    (r"(vit\..*\.mlp)\.fc2\.", r"\1.dense_4h_to_h."),
)
"""Names of HunyuanOCR's file, old and new, -> the released names."""
JOINED = {
    "q_proj": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "gate_proj": ("gate_and_up_proj", ("up_proj", "gate_proj")),
}
"""First of the parts -> the released matrix, and its parts in order: the second half goes through silu."""
_PART = re.compile(r"^(.*\.)(q_proj|k_proj|v_proj|gate_proj|up_proj)(\.(?:weight|bias))$")


def vision(settings: ModelSettings) -> VisionModel:
    """Return tower and merger; positions are resized to the grid itself."""
    return VisionModel(
        vit=VisionTransformer(settings.vision, resized=True),
        perceive=Perceiver(settings.vision, text_width=settings.text.hidden_size),
    )


def language(settings: ModelSettings) -> LanguageModel:
    """Return decoder and head; bands of the rope are cut out of whole heads."""
    return LanguageModel(settings.text, decoder=Decoder(settings.text, across_halves=True))


def describe(directory: Path) -> Mapping[str, Any]:
    """Return sizes and ids of a HunyuanOCR directory under our names.

    Raises:
        ValueError: another kind of directory.
    """
    from transformers import HunYuanVLConfig

    written = json.loads((directory / "config.json").read_text())
    if written.get("model_type") != "hunyuan_vl":
        raise ValueError(f"{directory}/config.json is of {written.get('model_type')!r}: give a HunyuanOCR directory")
    config = HunYuanVLConfig.from_pretrained(directory, local_files_only=True)
    text: Any = config.text_config
    picture: Any = config.vision_config
    rope = text.rope_parameters
    width = text.head_dim or text.hidden_size // text.num_attention_heads
    shares = [section / (width // 2) for section in rope.get("mrope_section", [width // 8] * 4)]
    if len(shares) != 4:
        raise ValueError(f"{directory}/config.json cuts the rope into {len(shares)} bands; four are known here")
    return {
        "text_config": {
            **text_sizes(text, head_dim=width),
            "rope_scaling": {"type": "dynamic", "alpha": float(rope.get("alpha") or 1.0)},
            "xdrope_section": shares,
        },
        "vision_config": {
            "hidden_size": picture.hidden_size,
            "intermediate_size": picture.intermediate_size,
            "num_hidden_layers": picture.num_hidden_layers,
            "num_attention_heads": picture.num_attention_heads,
            "rms_norm_eps": picture.rms_norm_eps,
            "patch_size": picture.patch_size,
            "num_channels": picture.num_channels,
            "max_image_size": picture.max_image_size,
        },
    }


def renamed(tensors: Named, settings: ModelSettings) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors under the released names, those of query, key and value, and of gate and up, joined.

    Raises:
        ValueError: a part whose siblings are missing.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    for raw, tensor in tensors:
        name = with_rules(raw, RENAMES)
        match = _PART.match(name)
        if match is None:
            yield name, tensor
            continue
        before, part, kind = match.groups()
        whole, parts = JOINED["q_proj" if part in JOINED["q_proj"][1] else "gate_proj"]
        held = waiting.setdefault(before + whole + kind, {})
        held[part] = tensor
        if len(held) == len(parts):
            yield before + whole + kind, _joined([held[part] for part in parts], name=before, settings=settings)
            del waiting[before + whole + kind]
    if waiting:
        raise ValueError(f"parts of {', '.join(sorted(waiting))} are missing")


def _joined(parts: list[Tensor], *, name: str, settings: ModelSettings) -> Tensor:
    """Return the released matrix: halves end to end, or queries, key and value of each key head in turn."""
    if len(parts) == 2:
        return torch.cat(parts)
    text, seen = settings.text, settings.vision
    heads = seen.num_attention_heads if name.startswith("vision_model.") else text.num_key_value_heads
    grouped = [part.unflatten(0, (heads, -1)) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


PARTS = replace(ARC, vision=vision, language=language, describe=describe, renamed=renamed)
