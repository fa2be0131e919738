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


def load_config(directory: Path) -> ArcVideoConfig:
    """Return the configuration of a checkpoint directory; without config.json, the released sizes."""
    if (directory / "config.json").exists():
        return ArcVideoConfig.from_pretrained(directory, local_files_only=True)
    return ArcVideoConfig()


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
    # Built without memory and without drawing random numbers: loading fills everything or fails.
    model = empty_model(load_config(directory))
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


def empty_model(config: ArcVideoConfig) -> ArcVideoForConditionalGeneration:
    """Return the model without memory, on the meta device."""
    with torch.device("meta"):
        return ArcVideoForConditionalGeneration(config)


def check_fit(directory: Path, *, config: ArcVideoConfig | None = None) -> None:
    """Compare names and shapes of a checkpoint's tensors with the model, before any of them is read.

    Args:
        directory: of the checkpoint.
        config: of the model; the directory's own by default.

    Raises:
        ValueError: with every missing, unexpected and misshapen key, or a head that differs from the embedding.
    """
    state = empty_model(config or load_config(directory)).state_dict()
    fit = _Fit({name: tuple(tensor.shape) for name, tensor in state.items() if name != HEAD})
    places: dict[str, Path] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 -- not a dict
                fit.accept(name, tuple(handle.get_slice(name).get_shape()))
                places[name] = path
    head, embedding = (_tensor(name, places) for name in (HEAD, EMBEDDING)) if HEAD in places else (None, None)
    fit.finish(head=head, embedding=embedding)


def _tensor(name: str, places: Mapping[str, Path]) -> Tensor | None:
    if name not in places:
        return None
    with safe_open(places[name], framework="pt") as handle:
        return handle.get_tensor(name)


class _Fit:
    """Collects what is wrong with the keys of a checkpoint."""

    def __init__(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        self.wanted = dict(wanted)
        self.seen: set[str] = set()
        self.problems: list[str] = []

    def accept(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether the tensor belongs into the model; note why not."""
        if name == HEAD or name in IGNORED:
            return False
        if name not in self.wanted:
            self.problems.append(f"{name} is unexpected")
        elif name in self.seen:
            self.problems.append(f"{name} appears twice")
        elif self.wanted[name] != shape:
            self.problems.append(f"{name} is {shape}, the configuration wants {self.wanted[name]}")
        self.seen.add(name)
        return self.wanted.get(name) == shape

    def finish(self, *, head: Tensor | None, embedding: Tensor | None) -> None:
        """Raise ValueError with every problem."""
        self.problems += [f"{name} is missing" for name in self.wanted if name not in self.seen]
        if head is not None and embedding is not None and not torch.equal(head.to(embedding.dtype), embedding):
            self.problems.append(f"{HEAD} differs from {EMBEDDING}, but this model ties them")
        if self.problems:
            raise ValueError("weights do not fit the model:\n  " + "\n  ".join(self.problems))


def _fill(model: nn.Module, files: Iterable[Path]) -> None:
    state = model.state_dict()
    fit = _Fit({name: tuple(tensor.shape) for name, tensor in state.items() if name != HEAD})
    head: Tensor | None = None
    for name, tensor in tensors_of(files):
        if name == HEAD:
            head = tensor
        elif fit.accept(name, tuple(tensor.shape)):
            state[name].copy_(tensor)
    fit.finish(head=None if head is None else head.to(state[EMBEDDING].dtype), embedding=state[EMBEDDING].cpu())


def tensors_of(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors one by one, so that only one is in memory beside the model."""
    for path in files:
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 -- not a dict
                yield name, handle.get_tensor(name)
