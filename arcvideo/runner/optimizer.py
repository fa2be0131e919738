"""The torch optimizer given to DeepSpeed: parameter groups, AdamW, Muon; and the schedule of its learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from arcvideo.runner.muon import Muon
from arcvideo.runner.settings import OptimizerSettings, ScheduleSettings
from arcvideo.runner.trainable import base_of, module_of

# Read and written by row, not multiplied: Muon's argument about matrices does not hold for them.
_TABLES = ("embed_tokens", "lm_head", "wte")


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer over two: groups with `muon=True` step by Muon, the others by AdamW.

    The group dictionaries and the state are shared with the two torch optimizers, so that whoever sets a learning
    rate or reads a state here reaches theirs.
    """

    def __init__(self, groups: list[dict[str, Any]], *, settings: OptimizerSettings) -> None:
        super().__init__(groups, {"lr": settings.lr})
        by_muon = [group for group in self.param_groups if group["muon"]]
        by_adamw = [group for group in self.param_groups if not group["muon"]]
        self._inner: list[torch.optim.Optimizer] = []
        if by_muon:
            self._inner.append(Muon(by_muon, lr=settings.matrix_lr, momentum=settings.muon_momentum))
        if by_adamw:
            self._inner.append(torch.optim.AdamW(by_adamw, lr=settings.lr, betas=_betas(settings), eps=settings.eps))
        self.param_groups = [group for inner in self._inner for group in inner.param_groups]
        for inner in self._inner:
            inner.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step both; a closure is not supported."""
        assert closure is None
        for inner in self._inner:
            inner.step()


def _betas(settings: OptimizerSettings) -> tuple[float, float]:
    return float(settings.betas[0]), float(settings.betas[1])


def _is_muon(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and module_of(name) == "llm" and not any(table in name for table in _TABLES)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], *, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return groups by module, weight decay and optimizer; each has `module`, `muon`, `peak_lr`, `lr` and
    `weight_decay`.

    Norms, biases and other tensors of fewer than two dimensions get no weight decay.
    """
    groups: dict[tuple[str, bool, bool], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        module, decays = module_of(name), parameter.ndim >= 2
        muon = settings.name == "muon" and _is_muon(name, parameter)
        if (module, decays, muon) not in groups:
            peak = settings.peak_of(base_of(module), by_muon=muon)
            groups[module, decays, muon] = {
                "params": [],
                "module": module,
                "muon": muon,
                "peak_lr": peak,
                "lr": peak,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
        groups[module, decays, muon]["params"].append(parameter)
    return list(groups.values())


def peak_lrs(named: Iterable[tuple[str, nn.Parameter]], *, settings: OptimizerSettings) -> dict[str, list[float]]:
    """Return trained module -> its peak learning rates, largest first."""
    peaks: dict[str, set[float]] = {}
    for group in parameter_groups(named, settings=settings):
        peaks.setdefault(group["module"], set()).add(group["peak_lr"])
    return {module: sorted(rates, reverse=True) for module, rates in peaks.items()}


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], *, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return the optimizer of the trained parameters among `named`.

    Raises:
        ValueError: nothing is trained.
    """
    groups = parameter_groups(named, settings=settings)
    if not groups:
        raise ValueError("no parameter is trained: stage.train must name at least one module")
    if settings.name == "muon":
        return MuonWithAdamW(groups, settings=settings)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=_betas(settings), eps=settings.eps, fused=True)


def lr_ratio(step: int, *, schedule: ScheduleSettings, steps: int) -> float:
    """Share of the peak learning rate at `step`, counted from 0, of a run of `steps` steps.

    The warm-up ends at the peak on step `warmup_steps`, or halfway through a run that is not longer than that; the
    decay reaches `min_ratio` on the last step.
    """
    warmup = schedule.warmup_steps if schedule.warmup_steps < steps else steps // 2
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.name == "constant":
        return 1.0
    span = max(steps - 1 - warmup, 1)
    done = min((step - warmup) / span, 1.0)
    left = 1.0 - done if schedule.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.min_ratio + (1.0 - schedule.min_ratio) * left
