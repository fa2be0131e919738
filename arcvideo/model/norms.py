"""RMS norm of the decoder and of the merger."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from arcvideo.model.fused import kernel


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x), in at least fp32, cast back, then times the weight."""
    if x.dtype in (torch.float32, torch.float64):
        return nnf.rms_norm(x, (x.shape[-1],), weight, eps)
    # Half precision casts back BEFORE the weight, as the reference does.
    return nnf.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype) * weight


class RMSNorm(nn.Module):
    """`rms_norm` with a weight that learns."""

    fused = False
    """Whether it is one compiled kernel."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return kernel(rms_norm, fused=self.fused)(x, self.weight, self.eps)
