"""A key-value cache that is written in place instead of concatenated.

Shapes: R rows, H key-value heads, N cached tokens, D head width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RowsLayer(DynamicLayer):
    """Keys and values of one layer inside a buffer with room for the tokens to come."""

    def __init__(self, *, keys: Tensor, values: Tensor, room: int) -> None:
        """Copy (R, H, N, D) keys and values into buffers of N + room tokens."""
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._keys, self._values = _with_room(keys, room=room), _with_room(values, room=room)
        self._length = keys.shape[-2]
        self._expose()

    def _expose(self) -> None:
        self.keys = self._keys[:, :, : self._length]
        self.values = self._values[:, :, : self._length]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (R, H, n, D) and return views of everything cached."""
        end = self._length + key_states.shape[-2]
        assert end <= self._keys.shape[-2], "the cache was made with too little room"
        self._keys[:, :, self._length : end] = key_states
        self._values[:, :, self._length : end] = value_states
        self._length = end
        self._expose()
        return self._keys[:, :, :end], self._values[:, :, :end]


def _with_room(states: Tensor, *, room: int) -> Tensor:
    rows, heads, length, width = states.shape
    buffer = states.new_zeros(rows, heads, length + room, width)  # zeros: masked slots must not hold NaN
    buffer[:, :, :length] = states
    return buffer


def fork(cache: Cache, *, rows: Tensor, room: int) -> Cache:
    """Return a cache whose row i is a copy of row `rows[i]`, with room for `room` more tokens; the given one is used
    up.

    For several questions about one clip; the completions of a question share its row by reference (`ForkedCache`).
    """
    layers: list[Any] = list(cache.layers)
    cache.layers.clear()
    for number, layer in enumerate(layers):  # in place of the old one: no more than a layer lies there twice
        layers[number] = RowsLayer(keys=layer.keys[rows], values=layer.values[rows], room=room)
    return Cache(layers=layers)
