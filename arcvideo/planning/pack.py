"""Best-fit packing of families into rows of at most a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def best_fit(lengths: Ints, *, budget: int) -> list[list[int]]:
    """Return which families share a pack: longest first, each into the fullest pack that still has room.

    A bit set of the rooms that exist finds the fullest fitting pack in a few machine words.
    """
    assert not len(lengths) or lengths.max() <= budget
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms = 0
    for family in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[family])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            packs[pack].append(family)
        else:
            room, pack = budget, len(packs)
            packs.append([family])
        left = room - length
        if left not in by_room or not by_room[left]:
            by_room[left] = []
            rooms |= 1 << left
        by_room[left].append(pack)
    return packs


def greedy_cuts(lengths: Sequence[int], *, prefix: int, budget: int) -> list[int]:
    """Return where to cut a run of branches so that each part fits the budget with its own copy of the prefix."""
    cuts, filled = [0], prefix
    for place, length in enumerate(lengths):
        assert prefix + length <= budget
        if filled + length > budget:
            cuts.append(place)
            filled = prefix
        filled += length
    return cuts
