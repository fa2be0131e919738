"""The forked cache against ordinary attention over one long row per completion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from arcvideo.sampling.forked import ForkedCache

HEADS, KEYS, WIDTH = 4, 2, 8


def prefilled(lengths: list[int], *, layers: int = 2) -> tuple[DynamicCache, Tensor]:
    """A cache of random prompts, padded on the right, and its mask."""
    cache, longest = DynamicCache(), max(lengths)
    for layer in range(layers):
        keys, values = torch.randn(2, len(lengths), KEYS, longest, WIDTH, dtype=torch.float64)
        cache.update(keys, values, layer)
    return cache, torch.arange(longest)[None] < torch.tensor(lengths)[:, None]


class Plain:
    """Every row's own copy of everything."""

    def __init__(self, cache: Any, mask: Tensor, generations: int) -> None:
        rows = [row for row in range(len(mask)) for _ in range(generations)]
        self.rows = [
            [(layer.keys[row][:, mask[row]], layer.values[row][:, mask[row]]) for layer in cache.layers] for row in rows
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        outputs = []
        for row, past in enumerate(self.rows):
            keys, values = (torch.cat([old, new[row].transpose(0, 1)], 1) for old, new in zip(past[layer], (k, v)))  # noqa: B905
            past[layer] = (keys, values)
            query = q[row].transpose(0, 1)[None]
            outputs.append(F.scaled_dot_product_attention(query, keys[None], values[None], enable_gqa=True)[0])
        return torch.stack(outputs).transpose(1, 2)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("lengths", [[7], [5, 9, 1], [6, 6]])
def test_sharing_equals_copies(lengths: list[int], static: bool) -> None:
    torch.manual_seed(0)
    cache, mask = prefilled(lengths)
    forked = ForkedCache(cache, mask=mask, generations=3, room=6, static=static)
    plain = Plain(cache, mask, 3)
    for step in range(5):
        if step == 3 and not static:  # rows leave, one prompt altogether when there are several
            kept = torch.tensor([0, 2, *range(6, 3 * len(lengths))] if len(lengths) > 1 else [1])
            forked.keep(kept)
            plain.rows = [plain.rows[row] for row in kept.tolist()]
        rows = len(plain.rows)
        for layer in range(2):
            q = torch.randn(rows, 1, HEADS, WIDTH, dtype=torch.float64)
            k, v = torch.randn(2, rows, 1, KEYS, WIDTH, dtype=torch.float64)
            torch.testing.assert_close(
                forked.attend(q, k, v, layer=layer), plain.attend(q, k, v, layer=layer), rtol=1e-12, atol=1e-12
            )
        forked.advance()
        assert forked.get_seq_length() == max(lengths) + step + 1


def test_the_prompt_is_shared_by_reference_until_a_prompt_leaves() -> None:
    cache, mask = prefilled([5, 9])
    forked = ForkedCache(cache, mask=mask, generations=64, room=1)
    layers: list[Any] = cache.layers
    assert all(mine[0] is layer.keys and mine[1] is layer.values for mine, layer in zip(forked._prompts, layers))  # noqa: B905
    forked.keep(torch.arange(0, 128, 2))
    assert forked._prompts[0][0] is layers[0].keys
    forked.keep(torch.arange(10))
    assert forked._prompts[0][0].shape[0] == 1
