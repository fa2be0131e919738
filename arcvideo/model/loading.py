"""Reading and writing checkpoints under the released key names, strictly: every odd key is named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.modeling import ArcVideoForConditionalGeneration

HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
IGNORED = ("vision_model.vit.embeddings.position_ids",)
"""Buffers of the released files that hold nothing learned."""
INDEX = "model.safetensors.index.json"


def load_model(directory: Path, *, dtype: torch.dtype = torch.float32) -> ArcVideoForConditionalGeneration:
    """Return the model of a checkpoint directory: the released one, or one that `save_model` wrote.

    Args:
        directory: holds config.json (without one the released sizes are taken) and *.safetensors.
        dtype: of the parameters.

    Raises:
        ValueError: no weights, or weights that do not fit, with every missing, unexpected and misshapen key.
    """
    directory = Path(directory)
    files = weight_files(directory)
    if (directory / "config.json").exists():
        config = ArcVideoConfig.from_pretrained(directory, local_files_only=True)
    else:
        config = ArcVideoConfig()
    # Built without memory and without drawing random numbers: loading fills everything or fails.
    with torch.device("meta"):
        model = ArcVideoForConditionalGeneration(config)
    nn.Module.to(model, dtype)
    nn.Module.to_empty(model, device="cpu")
    model.tie_weights()
    _fill(model, files)
    return model.eval()


def load_weights(model: nn.Module, *files: Path) -> None:
    """Fill the model from safetensors files, strictly.

    Raises:
        ValueError: keys that do not fit.
    """
    _fill(model, files)


def save_model(
    model: ArcVideoForConditionalGeneration, directory: Path, *, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write config.json and safetensors (head left out, it is tied) so that `load_model` reads them.

    Args:
        model: whose configuration and, without `state`, parameters are written.
        directory: made when absent.
        state: gathered parameters, where the model's own are partitioned.
    """
    given = None if state is None else {name: tensor for name, tensor in state.items() if name != HEAD}
    model.save_pretrained(directory, state_dict=given, max_shard_size="5GB")


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, by its index where there is one.

    Raises:
        ValueError: none, or a file that the index names is absent.
    """
    index = directory / INDEX
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [directory / name for name in names]
    else:
        files = sorted(directory.glob("*.safetensors"))
    missing = [path.name for path in files if not path.exists()]
    if missing or not files:
        raise ValueError(f"{directory} lacks weights: {', '.join(missing) or 'no *.safetensors file'}")
    return files


def _fill(model: nn.Module, files: Iterable[Path]) -> None:
    state = model.state_dict()
    wanted = {name: tensor for name, tensor in state.items() if name != HEAD}
    problems: list[str] = []
    head: Tensor | None = None
    for name, tensor in _tensors(files):
        if name == HEAD:
            head = tensor
        elif name in wanted:
            target = wanted.pop(name)
            if target.shape == tensor.shape:
                target.copy_(tensor)
            else:
                problems.append(f"{name} is {tuple(tensor.shape)}, the configuration wants {tuple(target.shape)}")
        elif name in state:
            problems.append(f"{name} appears twice")
        elif name not in IGNORED:
            problems.append(f"{name} is unexpected")
    problems += [f"{name} is missing" for name in wanted]
    if head is not None and not torch.equal(head.to(state[EMBEDDING].dtype), state[EMBEDDING].cpu()):
        problems.append(f"{HEAD} differs from {EMBEDDING}, but this model ties them")
    if problems:
        raise ValueError("weights do not fit the model:\n  " + "\n  ".join(problems))


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors one by one, so that only one is in memory beside the model."""
    for path in files:
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 -- not a dict
                yield name, handle.get_tensor(name)
