"""Low-rank adapters on linear layers, through PEFT; the only file that imports it. https://arxiv.org/abs/2106.09685

An adapted layer computes W x + alpha / rank * B A x with W frozen. B starts at zero, so a fresh adapter changes
nothing. Parameters of adapters have `.lora_` in their names, those of the layers under them `.base_layer`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from arcvideo.model.disk.carried import share
from arcvideo.model.settings import LoraSettings, adapter_targets
from arcvideo.seals import write_sums
from arcvideo.structured import nearest


class Adapters:
    """The adapters in a model: saved as PEFT reads them, and merged into the weights."""

    def __init__(self, wrapped: Any) -> None:
        """Hold PEFT's wrapper around a model whose layers it replaced in place; `add_adapters` makes one."""
        self._wrapped = wrapped

    def save(self, folder: Path | None) -> None:
        """Write a folder that `PeftModel.from_pretrained` reads: adapters, and every module that was trained whole.

        Loaded onto the weights that the stage started from, it gives the model that the stage exports.

        Args:
            folder: is replaced; None on ranks that do not write.
        """
        if folder is None:
            return
        temporary = folder.with_name(f".{folder.name}.tmp")
        for leftover in (temporary, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        config = self._wrapped.peft_config["default"]
        whole = whole_modules(self._wrapped.get_base_model())
        config.modules_to_save = sorted(whole) or None
        self._wrapped.save_pretrained(temporary, save_embedding_layers=False)
        config.modules_to_save = None
        _add(temporary / "adapter_model.safetensors", modules=whole)
        (temporary / "README.md").write_text(_card(config, whole=sorted(whole)))
        share(temporary)
        write_sums(temporary)
        temporary.rename(folder)

    def merge(self) -> nn.Module:
        """Add the adapters to the weights and take them out; the model has its plain layers and names again.

        Raises:
            ValueError: a merged weight is not finite.
        """
        return self._wrapped.merge_and_unload(safe_merge=True)


def add_adapters(
    model: nn.Module, *, settings: LoraSettings, prefixes: Sequence[str], seed: int = 0, parent: str = ""
) -> Adapters:
    """Put adapters on the linear layers that settings name, in place; every other parameter is frozen by it.

    Call `train_only` afterwards, which says what trains.

    Args:
        model: fp32, whole.
        settings: rank, targets and so on.
        prefixes: of the names of the modules to adapt, with their last dot.
        seed: of the adapters' first values; equal on all ranks.
        parent: folder of the weights, noted in the saved adapter.

    Raises:
        ValueError: a target that is no linear layer there, or a module without any target.
    """
    from peft import LoraConfig, get_peft_model

    if not settings.targets:
        family: Any = model.config
        settings = replace(settings, targets=adapter_targets(settings, family=family.family))
    _check_targets(model, settings=settings, prefixes=prefixes)
    where, what = (f"(?:{'|'.join(map(re.escape, names))})" for names in (prefixes, settings.targets))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=rf"{where}(?:.*\.)?{what}",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)  # type: ignore[arg-type]
    wrapped.peft_config["default"].base_model_name_or_path = parent or None
    for name, module in model.named_modules():
        # A model read from disk is in eval mode, in which nothing would ever be dropped.
        if name.endswith(".lora_dropout"):
            module.train()
    return Adapters(wrapped)


def whole_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return, by name, the largest modules that are trained whole, without adapters in them.

    Raises:
        ValueError: a parameter that is trained but whose module holds others that are not: it cannot be saved alone.
    """
    whole: dict[str, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        learning = [key for key, parameter in parameters.items() if parameter.requires_grad and ".lora_" not in key]
        if not learning:
            return
        if name and len(learning) == len(parameters):
            whole[name] = module
            return
        if own := [key for key in learning if "." not in key]:
            raise ValueError(f"{name or 'the model'}: {', '.join(own)} learn but the rest of the module does not")
        for child, part in module.named_children():
            visit(f"{name}.{child}" if name else child, part)

    visit("", model)
    return whole


def _add(path: Path, *, modules: Mapping[str, nn.Module]) -> None:
    """Add modules' parameters to a saved adapter, under the names by which PEFT looks for modules_to_save."""
    tensors = load_file(path)
    for name, module in modules.items():
        for key, parameter in module.named_parameters():
            tensors[f"base_model.model.{name}.{key}"] = parameter.detach().cpu().contiguous().clone()
    save_file(tensors, path, metadata={"format": "pt"})


def _card(config: Any, *, whole: Sequence[str]) -> str:
    """Return the README of a saved adapter."""
    parts = ", ".join(f"`{name}`" for name in whole) or "none"
    return f"""---
library_name: peft
base_model: {config.base_model_name_or_path or "unknown"}
---
# Adapter

Low-rank adapters (rank {config.r}, alpha {config.lora_alpha}) on the linear layers that match
`{config.target_modules}`.
Modules that were trained whole and are stored beside them (`modules_to_save`): {parts}.

```python
import arcvideo
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained("{config.base_model_name_or_path or "BASE"}")
model = PeftModel.from_pretrained(base, "THIS FOLDER")
```

The base must be the very weights that the stage started from; then the result is the stage's export.
"""


def disable_adapters(model: nn.Module) -> None:
    """Make every adapted layer compute what it did before; the adapters' parameters are frozen by it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(False)


def _check_targets(model: nn.Module, *, settings: LoraSettings, prefixes: Sequence[str]) -> None:
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    # A head that shares its weight with the embedding cannot be merged without changing the embedding.
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in tables and name.startswith(tuple(prefixes))
    ]
    layer_names = sorted({name.rsplit(".", 1)[-1] for name in layers})
    hits = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in settings.targets}
    for target, matches in hits.items():
        if not matches:
            raise ValueError(
                f"lora.targets has {target!r}, which is no linear layer of {', '.join(prefixes)}"
                f"{nearest(target, layer_names)}; there are {', '.join(layer_names)}"
            )
    for prefix in prefixes:
        if not any(name.startswith(prefix) for matches in hits.values() for name in matches):
            raise ValueError(f"lora.targets names no linear layer in {prefix}, which lora.modules adapts")
