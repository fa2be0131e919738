"""Weight files under the released key names, compared with a model strictly: every odd key is named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
IGNORED = ("vision_model.vit.embeddings.position_ids",)
"""Buffers of the released files that hold nothing learned."""
INDEX = "model.safetensors.index.json"


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


def tensors_of(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors one by one, so that only one is in memory beside the model."""
    for path in files:
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 -- not a dict
                yield name, handle.get_tensor(name)


def check_fit(directory: Path, *, state: Mapping[str, Tensor], tied: bool = True) -> None:
    """Compare names and shapes of a checkpoint's tensors with a model's, before any of them is read.

    Args:
        directory: of the checkpoint.
        state: of the model; the tensors may be without memory.
        tied: whether the head is the embedding.

    Raises:
        ValueError: with every missing, unexpected and misshapen key, or a head that differs from the embedding.
    """
    fit = _Fit(state, tied=tied)
    places: dict[str, Path] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 -- not a dict
                fit.accept(name, tuple(handle.get_slice(name).get_shape()))
                places[name] = path
    both = HEAD in places and tied
    head, embedding = (_tensor(name, places) for name in (HEAD, EMBEDDING)) if both else (None, None)
    fit.finish(head=head, embedding=embedding)


def fill(state: Mapping[str, Tensor], files: Iterable[Path], *, tied: bool = True) -> None:
    """Copy a checkpoint's tensors into a model's, one by one; a tied head is the embedding and only compared.

    Raises:
        ValueError: with every missing, unexpected and misshapen key, or a head that differs from the embedding.
    """
    fit = _Fit(state, tied=tied)
    head: Tensor | None = None
    for name, tensor in tensors_of(files):
        if name == HEAD and tied:
            head = tensor
        elif fit.accept(name, tuple(tensor.shape)):
            state[name].copy_(tensor)
    fit.finish(head=None if head is None else head.to(state[EMBEDDING].dtype), embedding=state[EMBEDDING].cpu())


def _tensor(name: str, places: Mapping[str, Path]) -> Tensor | None:
    if name not in places:
        return None
    with safe_open(places[name], framework="pt") as handle:
        return handle.get_tensor(name)


class _Fit:
    """Collects what is wrong with the keys of a checkpoint."""

    def __init__(self, state: Mapping[str, Tensor], *, tied: bool) -> None:
        self.skipped = (*IGNORED, HEAD) if tied else IGNORED
        self.wanted = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in self.skipped}
        self.seen: set[str] = set()
        self.problems: list[str] = []

    def accept(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether the tensor belongs into the model; note why not."""
        if name in self.skipped:
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
