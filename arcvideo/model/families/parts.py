"""What a family's folder gives the model: functions that build its modules, and the names its weights come under."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from arcvideo.model.settings import ModelSettings

Named = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One family."""

    vision: Callable[[ModelSettings], nn.Module]
    """Settings -> a module with `vit` (patches of frames or groups) and `perceive` (patches -> tokens)."""
    language: Callable[[ModelSettings], nn.Module]
    """Settings -> a module with `model` (the decoder) and `lm_head`."""
    initialize: Callable[..., None]
    """(module, settings=...): fill the module's own parameters."""
    add_sound: Callable[..., Tensor]
    """(rows (R, D), frames=, tokens=, seconds=, settings=) -> addends (groups, tokens, D)."""
    describe: Callable[[Path], Mapping[str, Any]]
    """A directory of base weights -> the blocks of `config.json` that it fixes: text_config, vision_config, ..."""
    renamed: Callable[[Named, ModelSettings], Iterator[tuple[str, Tensor]]]
    """Tensors of a directory of base weights -> the same under our names."""


def with_rules(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """Return a name after every rule (pattern, replacement), in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def text_sizes(text: Any, *, head_dim: int) -> dict[str, Any]:
    """Return the sizes of a decoder of transformers under our names, those that all of them call alike."""
    alike = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "rms_norm_eps",
    )  # fmt: skip
    rope = float(text.rope_parameters["rope_theta"])
    return {name: getattr(text, name) for name in alike} | {"attention_head_dim": head_dim, "rope_theta": rope}
