"""A key-value cache in which all completions of a prompt read the prompt's keys and values where they lie.

Attention over the prompt and over a completion's own tokens are two calls, merged by their log-sum-exp (Hydragen,
https://arxiv.org/abs/2402.05099): the prompt is stored once and read once for all its completions.
Shapes: B prompts, R rows (completions being decoded), W rows of the widest prompt, H query heads, G key heads,
h head width, P tokens of the longest prompt, N tokens a completion may have.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class ForkedCache:
    """What the decoder's attention layers call while completions are decoded, one new token a row."""

    def __init__(self, prompts: Cache, *, mask: Tensor, generations: int, room: int, static: bool = False) -> None:
        """Fork every prompt.

        Args:
            prompts: prefilled, B rows; their tensors are kept, not copied.
            mask: (B, P) bool, False on padding.
            generations: rows of each prompt; row i belongs to prompt i // generations.
            room: N.
            static: always read all N slots, so that shapes never change and a CUDA graph can be replayed.
        """
        self._prompts: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in prompts.layers]  # type: ignore[union-attr, misc]
        self._hidden = None if bool(mask.all()) else ~mask
        self._own: list[tuple[Tensor, Tensor] | None] = [None] * len(self._prompts)
        self._room, self._static = room, static
        self._length = 0
        self._device = mask.device
        self._end = torch.zeros(1, dtype=torch.int64, device=mask.device)
        self._prompt = torch.arange(len(mask), device=mask.device).repeat_interleave(generations)
        self._lay_out()

    def get_seq_length(self) -> int:
        """Tokens before the next one, padding included."""
        return int(self._prompts[0][0].shape[-2]) + self._length

    def advance(self) -> None:
        """Count the token that all layers have just been given."""
        self._length += 1
        self._end += 1

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """(R, 1, H, h) outputs of one new token a row.

        Args:
            q: (R, 1, H, h).
            k: (R, 1, G, h), kept for the tokens to come.
            v: like k.
            layer: number of the calling layer.
        """
        exact = torch.promote_types(q.dtype, torch.float32)
        grouped = q[:, 0].unflatten(1, (k.shape[2], -1)).to(exact) * q.shape[-1] ** -0.5  # (R, G, H / G, h)
        before, before_lse = self._attend_prompt(grouped, layer=layer)
        after, after_lse = self._attend_own(grouped, k=k, v=v, layer=layer)
        share = torch.sigmoid(before_lse - after_lse).unsqueeze(-1)
        merged = after + share * (before - after)
        return merged.flatten(1, 2).unsqueeze(1).to(q.dtype)

    def _attend_prompt(self, q: Tensor, *, layer: int) -> tuple[Tensor, Tensor]:
        """Outputs (R, G, H / G, h) and log-sum-exp (R, G, H / G) over each row's prompt."""
        keys, values = self._prompts[layer]
        prompts, heads = keys.shape[:2]
        table = q.new_zeros(prompts * self._width, *q.shape[1:]).index_copy(0, self._slot, q)
        table = table.view(prompts, self._width, *q.shape[1:]).transpose(1, 2).flatten(2, 3)  # (B, G, W * H / G, h)
        scores = table @ keys.to(q.dtype).mT
        if self._hidden is not None:
            scores = scores.masked_fill(self._hidden[:, None, None], float("-inf"))
        lse = scores.logsumexp(-1)
        outputs = (scores - lse.unsqueeze(-1)).exp() @ values.to(q.dtype)

        def rows(table: Tensor) -> Tensor:
            split = table.view(prompts, heads, self._width, -1, *table.shape[3:])
            return split.transpose(1, 2).flatten(0, 1).index_select(0, self._slot)

        return rows(outputs), rows(lse)

    def _attend_own(self, q: Tensor, *, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """The same over each row's own tokens, the new one included."""
        keys, values = self._store(k, v, layer=layer)
        scores = q @ keys.to(q.dtype).mT
        if self._static:
            scores = scores.masked_fill(torch.arange(self._room, device=q.device) > self._end, float("-inf"))
        lse = scores.logsumexp(-1)
        return (scores - lse.unsqueeze(-1)).exp() @ values.to(q.dtype), lse

    def _store(self, k: Tensor, v: Tensor, *, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (R, G, tokens, h) of all own tokens, the new ones written in place."""
        own = self._own[layer]
        if own is None:
            assert self._length == 0
            shape = (k.shape[0], k.shape[2], self._room, k.shape[3])
            own = self._own[layer] = (k.new_zeros(shape), v.new_zeros(shape))  # zeros: unread slots must not hold NaN
        for buffer, new in zip(own, (k, v), strict=True):
            buffer.index_copy_(2, self._end, new.transpose(1, 2))
        end = self._room if self._static else self._length + 1
        return own[0][:, :, :end], own[1][:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, and the prompts that no row is left of."""
        self._prompt = self._prompt[rows]
        self._own = [None if own is None else (own[0][rows], own[1][rows]) for own in self._own]
        alive, self._prompt = self._prompt.unique(return_inverse=True)
        if len(alive) < len(self._prompts[0][0]):
            self._prompts = [(keys[alive], values[alive]) for keys, values in self._prompts]
            self._hidden = None if self._hidden is None else self._hidden[alive]
        self._lay_out()

    def _lay_out(self) -> None:
        """Give every row a slot in the table (B * W,) in which the rows of a prompt stand together."""
        counts = self._prompt.bincount()
        self._width = int(counts.max())
        first = counts.cumsum(0) - counts
        place = torch.arange(len(self._prompt), device=self._device) - first[self._prompt]
        self._slot = self._prompt * self._width + place
