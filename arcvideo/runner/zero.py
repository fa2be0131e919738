"""DeepSpeed's private corners that the engine relies on, in one place; tests/runner/test_engine.py fails if they move.

All functions take the optimizer that DeepSpeed wraps around ours (`engine.optimizer` under ZeRO 1 to 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from arcvideo.processes.ranks import World
from arcvideo.runner.settings import EngineSettings, zero_stage


@contextmanager
def judged_norm(zero: Any, *, refuse: Callable[[float], bool]) -> Iterator[list[float]]:
    """While entered, `step` asks `refuse` about the norm it computes; yields the list of norms seen.

    DeepSpeed drops a step whose norm is not finite, on all ranks and before anything moves: a refused norm is
    reported to it as infinite. What it computes the norm from differs by optimizer, so the last function before the
    check is wrapped.
    """
    seen: list[float] = []

    def verdict(norm: float) -> bool:
        seen.append(norm)
        return math.isfinite(norm) and refuse(norm)

    if hasattr(zero, "scaled_global_norm"):
        # ZeRO-1 and 2.
        name, original = "scaled_global_norm", zero.scaled_global_norm

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            norm = original(*arguments, **keywords)
            return torch.full_like(norm, float("inf")) if verdict(float(norm)) else norm

    elif hasattr(zero, "_get_norm_groups"):
        # ZeRO-3; groups that are not finite have norm -1.
        name, original = "_get_norm_groups", zero._get_norm_groups

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            groups = [torch.as_tensor(group).float() for group in original(*arguments, **keywords)]
            norms = torch.stack([group.cpu().reshape(()) for group in groups])
            norm = float("inf") if bool((norms < 0).any()) else float(torch.linalg.vector_norm(norms))
            return [torch.full_like(group, float("inf")) for group in groups] if verdict(norm) else groups

    else:
        # BF16_Optimizer of ZeRO-1: it hands over the whole gradients first, once for the norm and once for clipping.
        name, original = "get_grads_for_norm", zero.get_grads_for_norm

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            gradients = original(*arguments, **keywords)
            if keywords.get("for_clipping"):
                return gradients
            norm = float(torch.linalg.vector_norm(torch.stack([item.float().norm() for item in gradients[0]])))
            infinite = [torch.full_like(gradients[0][0], float("inf"))]
            return (infinite, gradients[1]) if verdict(norm) else gradients

    setattr(zero, name, wrapped)
    try:
        yield seen
    finally:
        delattr(zero, name)


def forget_gradients(zero: Any, *, stage: int) -> None:
    """Drop what a refused step has accumulated.

    ZeRO-2 with the optimizer on the CPU and bf16 weights keeps it and would add it to the next step's gradient.
    """
    if stage in (1, 2):
        for group in getattr(zero, "averaged_gradients", {}):
            zero.averaged_gradients[group] = None


def make_flat_states(zero: Any, basic: torch.optim.Optimizer, *, stage: int, steps: int) -> None:
    """Make AdamW's states, which it would make in its first step only: a resumed run fills them before."""
    for flat in _flat_tensors(zero):
        basic.state[flat] = {
            "step": torch.tensor(float(steps), device=flat.device),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    link_states(zero, stage=stage)


def link_states(zero: Any, *, stage: int) -> None:
    """Let DeepSpeed find the optimizer states by parameter.

    ZeRO-1 and 2 map them after the first *group* has stepped, when the other groups have none yet, and never again.
    """
    if stage in (1, 2):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _flat_tensors(zero: Any) -> list[Tensor]:
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
        if hasattr(zero, name):
            return list(getattr(zero, name))
    raise AssertionError(f"deepspeed keeps its fp32 weights elsewhere now: {type(zero).__name__}")


def publish_weights(zero: Any, *, stage: int) -> None:
    """Make the weights used in the forward those of the fp32 masters."""
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        zero._partition_all_parameters()
        for index in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def forget_partitions(model: nn.Module) -> None:
    """Give the modules plain dictionaries of parameters in place of DeepSpeed's."""
    for module in model.modules():
        module._parameters = dict(module._parameters)


def has_masters(settings: EngineSettings, *, precision: str) -> bool:
    """Return whether weights are bf16, with fp32 masters in the optimizer."""
    return precision == "bf16" and zero_stage(settings) > 0


def loading_dtype(settings: EngineSettings, *, precision: str, cached: bool, world: World) -> torch.dtype:
    """Return the type in which a rank reads the weights that it hands to the engine.

    Where weights are computed with in bf16, one rank reads all their bits and hands the masters on; the others need
    half the memory.

    Args:
        cached: whether tower outputs are cached, under a name made of the towers' bits: then all ranks need them.
    """
    half = has_masters(settings, precision=precision) and not world.first and not cached
    return torch.bfloat16 if half else torch.float32


def from_first(value: Tensor | None, *, shape: torch.Size, world: World) -> Tensor:
    """Return the first rank's fp32 tensor of this shape, on every rank; the others give None."""
    if world.size == 1:
        assert value is not None
        return value
    held = torch.empty(shape, device=world.device) if value is None else value.to(world.device).contiguous()
    dist.broadcast(held, 0)
    return held
