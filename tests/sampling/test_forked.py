"""The forked cache against ordinary attention over one long row per completion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from arcvideo.sampling.forked import ForkedCache
from arcvideo.sampling.prefill import Prefilled, runs_of

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


def forked_of(cache: DynamicCache, mask: Tensor, *, generations: int, room: int, padded: bool, static: bool) -> Any:
    prefilled = Prefilled(cache=cache, logits=torch.zeros(len(mask), 1), mask=mask, next_positions=mask.sum(1))
    return ForkedCache(runs_of(prefilled, padded=padded), width=generations, room=room, static=static)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("lengths", [[7], [5, 9, 1], [6, 6]])
def test_sharing_equals_copies(lengths: list[int], static: bool, padded: bool) -> None:
    torch.manual_seed(0)
    cache, mask = prefilled(lengths)
    plain = Plain(cache, mask, 3)
    forked = forked_of(cache, mask, generations=3, room=6, padded=padded, static=static)
    for step in range(5):
        if step == 3:  # rows leave, one prompt altogether when there are several
            kept = [number for row in range(len(lengths)) if row != 1 for number in (3 * row, 3 * row + 2)]
            forked.keep(torch.tensor(kept), width=2)
            plain.rows = [plain.rows[row] for row in kept]
        rows = len(plain.rows)
        for layer in range(2):
            q = torch.randn(rows, 1, HEADS, WIDTH, dtype=torch.float64)
            k, v = torch.randn(2, rows, 1, KEYS, WIDTH, dtype=torch.float64)
            torch.testing.assert_close(
                forked.attend(q, k, v, layer=layer), plain.attend(q, k, v, layer=layer), rtol=1e-12, atol=1e-12
            )
        forked.advance()
        forked.length += 1
        assert forked.get_seq_length() == max(lengths) + step + 1
        assert int(forked.end) == forked.length


def test_the_prompt_is_shared_by_reference_until_a_prompt_leaves() -> None:
    cache, mask = prefilled([9, 9])
    keys: list[Any] = [layer.keys for layer in cache.layers]  # type: ignore[union-attr]
    forked = forked_of(cache, mask, generations=64, room=1, padded=True, static=False)
    assert all(mine is theirs for mine, theirs in zip(forked._runs[0].keys, keys, strict=True))
    forked.keep(torch.arange(0, 128, 2), width=32)
    assert forked._runs[0].keys[0] is keys[0]
    forked.keep(torch.arange(10), width=10)
    assert forked._runs[0].keys[0].shape[0] == 1
    assert (forked.prompts, forked.rows) == (1, 10)


def test_prompts_of_different_length_stand_without_padding_where_a_kernel_takes_no_mask() -> None:
    cache, mask = prefilled([5, 9])
    runs = runs_of(
        Prefilled(cache=cache, logits=torch.zeros(2, 1), mask=mask, next_positions=mask.sum(1)), padded=False
    )
    assert [run.keys[0].shape[2] for run in runs] == [5, 9]
    assert all(run.mask is None for run in runs)
    assert not cache.layers, "the padded copy is gone"
