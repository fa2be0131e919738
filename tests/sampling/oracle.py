"""The sampler as it was before it was made lean: the same completions, one operation after the other.

Attention in fp32 and written out, sampling on its own, a look at every row after every token. What the lean one draws
is compared with this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache

from arcvideo.sampling.decode import filtered
from arcvideo.sampling.groups import Completion, Group
from arcvideo.sampling.prefill import prefill
from arcvideo.sampling.sampler import InProcessSampler
from arcvideo.sampling.settings import Sampling

COMPACT_SHARE = 0.75


class PlainCache:
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


class PlainSampler(InProcessSampler):
    """Draws with the operations written out."""

    def _sample_batch(self, prompts: Any, *, noise: Tensor, settings: Sampling) -> list[Group]:
        generations = noise.shape[1]
        state = self.begin(prompts, noise=noise, settings=settings)
        rows = torch.arange(len(prompts)).repeat_interleave(generations)
        ids, logprobs, lengths, finished = self._decode(state, settings=settings)
        completions = [
            Completion(
                ids=ids[row, : lengths[row]],
                logprobs=logprobs[row, : lengths[row]],
                finished=bool(finished[row]),
                text=self.tokenizer.decode(ids[row, : lengths[row]].tolist(), skip_special_tokens=True),
            )
            for row in range(len(rows))
        ]
        return [
            Group(prompt=prompt, completions=tuple(completions[index * generations :][:generations]))
            for index, prompt in enumerate(prompts)
        ]

    def begin(self, prompts: Any, *, noise: Tensor, settings: Sampling) -> PlainDecoding:
        generations = noise.shape[1]
        prefilled = prefill(self.model, prompts, features=self.features)
        rows = torch.arange(len(prompts), device=prefilled.logits.device).repeat_interleave(generations)
        return PlainDecoding(
            cache=PlainCache(
                prefilled.cache, mask=prefilled.mask, generations=generations, room=settings.max_new_tokens
            ),
            logits=prefilled.logits[rows],
            next_positions=prefilled.mask.sum(dim=1)[rows],
            noise=noise.flatten(0, 1),
        )

    def _decode(self, state: PlainDecoding, *, settings: Sampling) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ids and logprobs (rows, max_new_tokens), lengths and finished (rows,), all on CPU."""
        total, device = state.logits.shape[0], state.logits.device
        ids = torch.zeros(total, settings.max_new_tokens, dtype=torch.int64, device=device)
        logprobs = torch.zeros(total, settings.max_new_tokens, device=device)
        lengths = torch.zeros(total, dtype=torch.int64, device=device)
        finished = torch.zeros(total, dtype=torch.bool, device=device)
        stop = torch.tensor(sorted(self.stop_ids), device=device)
        banned = torch.tensor(sorted(self.banned_ids), dtype=torch.int64, device=device)
        live = torch.arange(total, device=device)  # original number of each row in the batch
        for step in range(settings.max_new_tokens):
            tokens, logp = _choose(state.logits, noise=state.noise[live.cpu(), step], banned=banned, settings=settings)
            active = ~finished[live]
            ids[live[active], step] = tokens[active]
            logprobs[live[active], step] = logp[active]
            lengths[live[active]] = step + 1
            finished[live] |= torch.isin(tokens, stop)
            for row in live[~finished[live]].tolist() if settings.stop else ():
                finished[row] = self._says(ids[row, : step + 1], settings.stop)
            going = ~finished[live]
            if not bool(going.any()) or step + 1 == settings.max_new_tokens:
                break
            if settings.decode == "dynamic" and going.float().mean() < COMPACT_SHARE:
                keep = going.nonzero().squeeze(1)
                state.cache.keep(keep)
                state.next_positions = state.next_positions[keep]
                live, tokens = live[keep], tokens[keep]
            self._advance(state, tokens=tokens, settings=settings)
        return ids.cpu(), logprobs.cpu(), lengths.cpu(), finished.cpu()

    def _advance(self, state: PlainDecoding, *, tokens: Tensor, settings: Sampling) -> None:
        output = self.model(
            input_ids=tokens[:, None],
            position_ids=state.next_positions[:, None, None].expand(-1, 4, 1),
            past_key_values=state.cache,
        )
        state.logits = output.logits[:, -1].float()
        state.cache.advance()
        state.next_positions = state.next_positions + 1


@dataclass(kw_only=True)
class PlainDecoding:
    cache: PlainCache
    logits: Tensor
    next_positions: Tensor
    noise: Tensor


def _choose(logits: Tensor, *, noise: Tensor, banned: Tensor, settings: Sampling) -> tuple[Tensor, Tensor]:
    """(R,) tokens and their (R,) log-probabilities under the unfiltered model, as the trainer will compute them."""
    scaled = logits / settings.temperature if settings.temperature > 0 else logits
    allowed = scaled.index_fill(1, banned, float("-inf"))
    if settings.temperature > 0:
        tokens = draw(filtered(allowed, top_k=settings.top_k, top_p=settings.top_p), noise=noise)
    else:
        tokens = allowed.argmax(dim=-1)
    return tokens, -F.cross_entropy(scaled, tokens, reduction="none")


def draw(logits: Tensor, *, noise: Tensor) -> Tensor:
    distribution = logits.double().softmax(dim=-1).cumsum(dim=-1)
    points = noise.to(logits.device) * distribution[:, -1]
    tokens = torch.searchsorted(distribution, points[:, None], right=True).squeeze(-1)
    last = logits.shape[-1] - 1 - torch.isfinite(logits).flip(-1).int().argmax(dim=-1)
    return torch.minimum(tokens, last)
