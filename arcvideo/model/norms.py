"""RMS norm of the decoder and of the merger."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x), in at least fp32, cast back, then times the weight."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float32, torch.float64):
            return nnf.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        # Half precision casts back BEFORE the weight, as the reference does.
        return nnf.rms_norm(x.float(), (x.shape[-1],), None, self.eps).to(x.dtype) * self.weight
