"""Attention of single tokens that also gives its log-sum-exp, so that parts over different keys can be merged.

The query heads of a group lie beside each other on the axis of queries: keys and values are read as they are, once for
all queries of an item. Shapes: N items, G key heads, Q queries (heads of a group times tokens), K keys, h head width,
R rows, r = query heads of a group, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

HALF = (torch.bfloat16, torch.float16)


def flash_takes(q: Tensor) -> bool:
    """Return whether CUDA's flash kernel computes this dtype and width."""
    return q.is_cuda and q.dtype in HALF and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def attend_all(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return outputs (N, G, Q, h) like q and log-sum-exp (N, G, Q), at least fp32: every query sees every key.

    On CUDA half precision without a mask is one flash call that splits long keys over the device; on the CPU one fused
    call. What is left (fp32 on CUDA, a mask there) is written out.

    Args:
        q: (N, G, Q, h).
        k: (N, G, K, h), read where it lies.
        v: like k.
        mask: (N or 1, 1, 1, K) additive, in the dtype of q.
    """
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=mask)
    if mask is None and flash_takes(q):
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False)[:2]
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v, lse


def attend_filled(
    q: Tensor, k: Tensor, v: Tensor, *, filled: Tensor, bounds: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the same for rows whose first `filled` slots hold keys: nothing behind them is read. CUDA, half precision.

    The numbers stay on the device, so that a CUDA graph can be replayed while they grow. TODO: unmeasured.

    Args:
        q: (R, G, r, h).
        k: (R, S, G, h).
        v: like k.
        filled: (R,) int32.
        bounds: (R + 1,) int32 of the queries, r a row, and of the slots, S a row.
    """
    rows, groups, heads, width = q.shape
    out, lse = varlen_attn(
        q.transpose(1, 2).reshape(rows * heads, groups, width), k.flatten(0, 1), v.flatten(0, 1),
        *bounds, heads, k.shape[1], return_aux=AuxRequest(lse=True), seqused_k=filled,
    )  # fmt: skip
    return out.view(rows, heads, groups, width).transpose(1, 2), lse.view(groups, rows, heads).transpose(0, 1)
