"""Which parts of the model train: setting it, showing it, proving it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PREFIXES = {
    "llm": ("language_model.",),
    "vision_projector": ("vision_model.perceive.",),
    "audio_projector": ("mlp2.",),
    "vit": ("vision_model.vit.",),
    "whisper": ("speech_encoder.",),
}
"""Module name in the settings -> prefixes of its parameters' names."""
ADAPTER = ".lora"
"""The adapters of `llm` are a module of their own, `llm.lora`: what is under them is frozen and proven to be."""


@dataclass(frozen=True, kw_only=True)
class ModuleRow:
    """One line of the table of modules."""

    module: str
    parameters: int
    trained: bool
    lrs: tuple[float, ...] = ()
    """Peak learning rates; more than one where an optimizer has several."""


def base_of(module: str) -> str:
    """Return the module (a key of PREFIXES) that a module is, or that its adapters sit on."""
    return module.removesuffix(ADAPTER)


def trained_modules(train: Iterable[str], *, adapted: Collection[str] = ()) -> list[str]:
    """Return the modules that learn when those in `adapted` learn through adapters."""
    return [name + ADAPTER if name in adapted else name for name in train]


def module_of(name: str) -> str:
    """Return the module that the parameter `name` belongs to: a key of PREFIXES, with `.lora` for parameters of
    adapters.

    Raises:
        ValueError: no prefix fits.
    """
    for module, prefixes in PREFIXES.items():
        if name.startswith(prefixes):
            return module + ADAPTER if ".lora_" in name else module
    raise ValueError(
        f"parameter {name!r} belongs to no module of {', '.join(PREFIXES)}: add its prefix to runner/trainable.py"
    )


def train_only(model: nn.Module, modules: Iterable[str]) -> list[ModuleRow]:
    """Set requires_grad so that exactly `modules` train; returns the table.

    Frozen modules also go to eval mode, so that nothing random is left in them.

    Raises:
        ValueError: an unknown name, or a name whose module has no parameters.
    """
    wanted = set(modules)
    unknown = {name for name in wanted if base_of(name) not in PREFIXES}
    if unknown:
        raise ValueError(f"stage.train names {sorted(unknown)}: choose from {', '.join(PREFIXES)}")
    present = {module_of(name) for name, _ in model.named_parameters()}
    if wanted - present:
        raise ValueError(f"stage.train names {sorted(wanted - present)}, but this model has no such parameters")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(module_of(name) in wanted)
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
    return trainable_table(model)


def trainable_table(model: nn.Module, *, lrs: Mapping[str, Sequence[float]] | None = None) -> list[ModuleRow]:
    """Return one row per module present, read from the parameters themselves.

    Args:
        lrs: module -> peak learning rates (`optimizer.peak_lrs`).

    Raises:
        ValueError: a module is trained in part.
    """
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        row = counts.setdefault(module_of(name), [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() if parameter.requires_grad else 0
    rows = []
    for module in (name + suffix for name in PREFIXES for suffix in ("", ADAPTER)):
        total, trained = counts.get(module, (0, 0))
        if trained not in (0, total):
            raise ValueError(f"module {module} is trained in part: {trained} of {total} parameters require gradients")
        if total:
            rates = tuple((lrs or {}).get(module, ()))
            rows.append(ModuleRow(module=module, parameters=total, trained=trained > 0, lrs=rates))
    return rows


def table_text(rows: Sequence[ModuleRow]) -> str:
    """Return the table for a terminal."""
    lines = [f"{'module':<22}{'parameters':>15}  {'trained':<8}{'peak learning rate'}"]
    for row in rows:
        rates = " and ".join(f"{rate:.3g}" for rate in row.lrs) or "-"
        lines.append(f"{row.module:<22}{row.parameters:>15,}  {'yes' if row.trained else 'no':<8}{rates}")
    learning = sum(row.parameters for row in rows if row.trained)
    total = sum(row.parameters for row in rows)
    lines.append(f"{'all':<22}{total:>15,}  {learning:,} ({100 * learning / max(total, 1):.3g} %) learn")
    return "\n".join(lines)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def tensor_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 hex over names, types, shapes and bytes, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def frozen_hashes(model: nn.Module, *, frozen: Iterable[str]) -> dict[str, str]:
    """Module name -> sha256 of its parameters, for each module in `frozen`.

    `frozen` comes from the configuration, not from requires_grad: a layer unfrozen behind the configuration's back
    is then caught by its changed hash. A layer under an adapter counts under its own name, as if there were none.
    """
    wanted = set(frozen)
    groups: dict[str, list[tuple[str, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        module = module_of(name)
        if module in wanted:
            groups.setdefault(module, []).append((name.replace(".base_layer.", "."), parameter))
    return {module: tensor_digest(sorted(group, key=lambda item: item[0])) for module, group in sorted(groups.items())}


class HiddenModules:
    """Takes wholly frozen modules out of the module tree while leaving them callable.

    DeepSpeed then never sees them: no cast, no partition under ZeRO-3, and above all no collective when they run, so
    ranks with different modalities cannot wait for each other. They stay reachable as plain attributes, which is all
    that the model's forward needs.
    """

    def __init__(self, model: nn.Module) -> None:
        self._taken: list[tuple[nn.Module, list[str], list[str]]] = []
        for parent, names in list(_frozen_children(model)):
            order = list(parent._modules)
            for name in names:
                parent.__dict__[name] = parent._modules.pop(name)
            self._taken.append((parent, order, names))

        self._originals: list[tuple[nn.Parameter, Tensor]] = []

    def compute_in(self, dtype: torch.dtype, *, device: torch.device) -> None:
        """Move them to `device`, their parameters to `dtype`; what a cast would lose is kept aside for `restore`."""
        for parent, _, names in self._taken:
            for name in names:
                module: nn.Module = parent.__dict__[name]
                for parameter in module.parameters():
                    if parameter.dtype != dtype:
                        self._originals.append((parameter, parameter.data))
                        parameter.data = parameter.data.to(device, dtype)
                module.to(device)

    def restore(self) -> None:
        """Put all of them back, in their old order, with the bits they had.

        Raises:
            ValueError: a parameter was changed meanwhile.
        """
        for parameter, original in self._originals:
            if not torch.equal(parameter.data.cpu(), original.to(parameter.dtype).cpu()):
                raise ValueError(f"a frozen parameter of shape {tuple(original.shape)} was changed during training")
            parameter.data = original
        self._originals = []
        for parent, order, names in self._taken:
            children = dict(parent._modules) | {name: parent.__dict__.pop(name) for name in names}
            parent._modules.clear()
            parent._modules.update({name: children[name] for name in order})
        self._taken = []


def _frozen_children(module: nn.Module) -> Iterator[tuple[nn.Module, list[str]]]:
    # Containers find their children by index in _modules, so theirs cannot become plain attributes.
    container = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)
    frozen = []
    for name, child in module.named_children():
        own = list(child.parameters())
        if own and not container and not any(parameter.requires_grad for parameter in own):
            frozen.append(name)
        elif own:
            yield from _frozen_children(child)
    if frozen:
        yield module, frozen
