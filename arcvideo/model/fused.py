"""Chains of cheap operations as one kernel each, by torch.compile: `model.compile=elementwise`.

A norm is four kernels in half precision, a rotated and normalised head nine, the gated unit two: each reads and
writes a whole activation. Compiled, each chain reads its inputs once, forward and backward, and rounds once at its end:
other bits, nearer to the exact ones. Only free functions of tensors are compiled: modules, their hooks (DeepSpeed's,
adapters'), plans of attention and checkpointing stay outside, so there is nothing that could break a graph.
TODO: unmeasured on a GPU.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled for any length, once per process."""
    _keep_apart()
    return torch.compile(function, dynamic=True)


@functools.cache
def _keep_apart() -> None:
    """Give kernels for other vector instructions of the same processor a cache of their own.

    torch's does not tell them apart (2.13), and a kernel that was compiled for one set computes garbage under another.
    """
    if instructions := os.environ.get("ATEN_CPU_CAPABILITY"):
        usual = os.path.join(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")
        folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or usual
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, instructions)


def kernel(function: Callable[..., Any], *, fused: bool) -> Callable[..., Any]:
    """Return a function of tensors, compiled if asked."""
    return _compiled(function) if fused else function


def fuse(module: nn.Module, *, how: str) -> None:
    """Let all parts of a module that know how run compiled, or no longer.

    Args:
        module: of whose parts those with a `fused` attribute are told.
        how: `model.compile`.
    """
    for part in module.modules():
        if hasattr(type(part), "fused"):
            part.fused = how == "elementwise"  # type: ignore[assignment]
