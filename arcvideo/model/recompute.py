"""What the backward pass computes anew of a layer: nothing, the cheap parts, or all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_KEPT_KERNELS = ("mm", "addmm", "bmm", "baddbmm")
_CHEAP = 8
"""A product is computed anew when its rows are more than so many times longer than the sums they are made of."""


def run_layers(layers: Iterable[nn.Module], x: Tensor, *inputs: Any, recompute: str) -> Tensor:
    """Return x after all layers, each called with the same further inputs.

    Args:
        layers: in order.
        x: what goes through them.
        inputs: what each gets beside it.
        recompute: none, selective or full; only where a graph is built, so a frozen tower is left alone.
    """
    for layer in layers:
        x = run_layer(layer, x, *inputs, recompute=recompute)
    return x


def run_layer(layer: nn.Module, x: Tensor, *inputs: Any, recompute: str) -> Tensor:
    """Return what one layer makes of x; see `run_layers`."""
    # A layer that transformers' own switch has reached checkpoints itself.
    if recompute == "none" or not torch.is_grad_enabled() or getattr(layer, "gradient_checkpointing", False):
        return layer(x, *inputs)
    contexts: dict[str, Any] = {"context_fn": _keep_products} if recompute == "selective" else {}
    return checkpoint(layer, x, *inputs, use_reentrant=False, **contexts)


def _keep_products() -> Any:
    """Return contexts of a checkpointed layer in which outputs of matrix products and of attention kernels are kept."""

    def policy(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
        name = operation.__name__.partition(".")[0] if hasattr(operation, "__name__") else ""
        kept = name in _KEPT_KERNELS and _costly(arguments)
        kept = kept or name.startswith(("_scaled_dot_product_", "_varlen_attn"))
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _costly(arguments: Sequence[Any]) -> bool:
    """Return whether a product (of its last two arguments) is worth keeping: an adapter's way up sums few terms a
    number.
    """
    inner, outer = arguments[-1].shape[-2:]
    return inner * _CHEAP >= outer
