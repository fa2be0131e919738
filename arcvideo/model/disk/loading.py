"""Models from checkpoint directories, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.weights import HEAD, fill, weight_files
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.seals import SUMS, Damaged, check_sums


def load_config(directory: Path) -> ArcVideoConfig:
    """Return the configuration of a checkpoint directory; without config.json, the released sizes."""
    if (directory / "config.json").exists():
        return ArcVideoConfig.from_pretrained(directory, local_files_only=True)
    return ArcVideoConfig()


def load_frozen(directory: Path, *, device: torch.device | str) -> Any:
    """Return the model of a checkpoint directory to be asked on a device: nothing of it learns.

    Raises:
        ValueError: as `load_model`.
    """
    device = torch.device(device)
    model: Any = load_model(directory, dtype=dtype_to_ask(device))
    return model.requires_grad_(False).to(device)


def dtype_to_ask(device: torch.device) -> torch.dtype:
    """Return what a model that is only asked computes in: float32 on a CPU, bfloat16 elsewhere."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def load_model(directory: Path, *, dtype: torch.dtype = torch.float32) -> ArcVideoForConditionalGeneration:
    """Return the model of a checkpoint directory: the released one, or one that `save_model` wrote.

    Args:
        directory: holds config.json (without one the released sizes are taken) and *.safetensors.
        dtype: of the parameters.

    Raises:
        ValueError: no weights, or weights that do not fit, with every missing, unexpected and misshapen key.
    """
    directory = Path(directory)
    check_written(directory)
    files = weight_files(directory)
    # Built without memory and without drawing random numbers: loading fills everything or fails.
    model = empty_model(load_config(directory))
    nn.Module.to(model, dtype)
    nn.Module.to_empty(model, device="cpu")
    model.tie_weights()
    fill(model.state_dict(), files, tied=model.config.tie_word_embeddings)
    return model.eval()


def check_written(directory: Path) -> None:
    """Compare all files of a checkpoint directory with its SHA256SUMS, where it has one.

    Raises:
        ValueError: one is missing or changed.
    """
    try:
        check_sums(directory)
    except Damaged as error:
        raise ValueError(
            f"{directory}: {error}. Restore that file, or delete {SUMS} there when the change is meant"
        ) from None


def load_weights(model: nn.Module, *files: Path) -> None:
    """Fill the model from safetensors files, strictly.

    Raises:
        ValueError: keys that do not fit.
    """
    fill(model.state_dict(), files)


def save_model(
    model: ArcVideoForConditionalGeneration, directory: Path, *, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write config.json and safetensors (a tied head left out) so that `load_model` and transformers read them.

    Args:
        model: whose configuration and, without `state`, parameters are written.
        directory: made when absent.
        state: gathered parameters, where the model's own are partitioned.
    """
    for left in Path(directory).glob(".tmp*"):  # of one that was killed: safetensors writes under such a name first
        left.unlink(missing_ok=True)
    tied = model.config.tie_word_embeddings
    given = None if state is None else {name: x for name, x in state.items() if name != HEAD or not tied}
    model.save_pretrained(directory, state_dict=given, max_shard_size="5GB")


def empty_model(config: ArcVideoConfig) -> ArcVideoForConditionalGeneration:
    """Return the model without memory, on the meta device."""
    with torch.device("meta"):
        return ArcVideoForConditionalGeneration(config)
