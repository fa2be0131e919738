"""Memory that is used again, and never while anything still refers to it."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from arcvideo.decoding.wire import Buffers


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_lent_again_once_nothing_refers_to_it() -> None:
    buffers = Buffers()
    first = buffers.lend((4, 8, 8, 3))
    there = place(first)
    assert first.shape == (4, 8, 8, 3)
    assert place(buffers.lend((4, 8, 8, 3))) != there
    del first
    gc.collect()
    found = {place(array) for array in [buffers.lend((4, 8, 8, 3)) for _ in range(2)]}
    assert there in found


LOOKS: dict[str, Callable[[np.ndarray], Any]] = {
    "view": lambda array: array[1],
    "tensor": torch.from_numpy,
    "permuted": lambda array: torch.from_numpy(array).permute(0, 3, 1, 2),
    "row of a tensor": lambda array: torch.from_numpy(array)[1, 2:],
    "numpy of a tensor": lambda array: torch.from_numpy(array).permute(0, 3, 1, 2)[1].numpy(),
}


@pytest.mark.parametrize("kind", LOOKS)
def test_whatever_still_looks_at_it_keeps_it(kind: str) -> None:
    buffers = Buffers()
    array = buffers.lend((2, 4, 4, 3))
    array[:] = 7
    held = LOOKS[kind](array)
    del array
    gc.collect()
    for _ in range(3):
        buffers.lend((2, 4, 4, 3))[:] = 9
    assert (np.asarray(held) == 7).all()


def test_a_much_larger_piece_is_not_lent() -> None:
    buffers = Buffers()
    there = place(buffers.lend((1000,)))
    assert place(buffers.lend((100,))) != there
    assert buffers.lend((900,)).base.nbytes == 1000


def test_no_more_lies_idle_than_was_allowed() -> None:
    buffers = Buffers(keep=2500)
    lent = [buffers.lend((1000,)) for _ in range(5)]
    del lent
    gc.collect()
    buffers.lend((1,))
    assert sum(piece.nbytes for piece in buffers._idle) <= 2500


def test_threads_never_share_a_piece() -> None:
    buffers = Buffers()

    def use(number: int) -> bool:
        draw = random.Random(number)
        kept = []
        for turn in range(50):
            mark = (number * 50 + turn) % 251
            tensor = torch.from_numpy(buffers.lend((draw.randint(900, 1000),)))
            tensor[:] = mark
            kept.append((mark, tensor))
            if len(kept) > 3:
                kept.pop(draw.randrange(len(kept)))
            if not all(bool((held == own).all()) for own, held in kept):
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(use, range(16)))
