"""A decoding turn as a CUDA graph: the launch of several hundred kernels becomes one.

TODO: unmeasured. It needs a GPU; tests marked `gpu` compare it with plain turns.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch

PLAIN_TURNS = 2
"""Turns on the side stream before a capture: kernels are chosen and workspaces allocated there."""


class Graphs:
    """Runs turns of fixed shapes: the first ones kernel by kernel, then as a graph, until the shapes change.

    One memory pool and one stream serve all captures of a sampler, so that memory does not grow with every rollout.
    """

    def __init__(self, *, device: torch.device, required: bool) -> None:
        """Make stream and pool.

        Args:
            device: of the model.
            required: a capture that fails is an error; else turns go on kernel by kernel, and a warning says so.

        Raises:
            ValueError: the device is no GPU.
        """
        if device.type != "cuda":
            raise ValueError("decode=cuda_graph needs the model on a GPU; use decode=dynamic")
        self._required, self._possible = required, True
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graph: Any = None
        self._turns = 0

    def forget(self) -> None:
        """Drop the graph: shapes or places have changed."""
        self._graph, self._turns = None, 0

    def turn(self, turn: Callable[[], None]) -> None:
        """Run one turn.

        Args:
            turn: reads and writes tensors at fixed places on the device, and nothing else.
        """
        if self._graph is not None:
            self._graph.replay()
            return
        if not self._possible or self._turns < PLAIN_TURNS:
            self._plainly(turn)
        else:
            self._capture(turn)
        self._turns += 1

    def _plainly(self, turn: Callable[[], None]) -> None:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            turn()
        current.wait_stream(self._stream)

    def _capture(self, turn: Callable[[], None]) -> None:
        """Capture a turn, which does not run it, and replay it."""
        graph = torch.cuda.CUDAGraph()
        collecting = gc.isenabled()
        gc.disable()  # a tensor freed in the middle would end the capture
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                turn()
        except RuntimeError as error:
            if self._required:
                raise
            self._possible = False
            warnings.warn(f"decoding goes on without a CUDA graph: {str(error).splitlines()[0]}", stacklevel=2)
            self._plainly(turn)
            return
        finally:
            if collecting:
                gc.enable()
        self._graph = graph
        graph.replay()
