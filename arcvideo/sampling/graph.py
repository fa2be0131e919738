"""One decoding step as a CUDA graph: the launch of a few hundred kernels becomes one.

TODO: unmeasured. It needs a GPU; the test marked `gpu` compares it with the plain step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arcvideo.sampling.forked import ForkedCache

WARM_UP = 2
"""Plain steps on a side stream before the capture: kernels are chosen and workspaces allocated there."""


class GraphStep:
    """`(tokens (R,), positions (R,), cache) -> logits (R, V) float32`, captured once and replayed."""

    def __init__(self, model: Any, *, cache: ForkedCache, rows: int) -> None:
        """Capture a step of `rows` rows that reads and writes `cache`, which must be static.

        Raises:
            ValueError: the model is not on a GPU.
        """
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise ValueError("decode=cuda_graph needs the model on a GPU; use decode=dynamic")
        self._model, self._cache = model, cache
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):  # writes the same slot of the cache each time; the replay writes it again
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._forward()

    def __call__(self, tokens: Tensor, positions: Tensor, cache: ForkedCache) -> Tensor:
        """Replay with new inputs."""
        assert cache is self._cache
        self._tokens.copy_(tokens)
        self._positions.copy_(positions)
        self._graph.replay()
        return self._logits.clone()

    def _forward(self) -> Tensor:
        output = self._model(
            input_ids=self._tokens[:, None],
            position_ids=self._positions[:, None, None].expand(-1, 4, 1),
            past_key_values=self._cache,
        )
        return output.logits[:, -1].float()
