"""The in-process sampler: decodes with the very model that is being trained or evaluated.

A clip is encoded and prefilled once, a question once; the cache is forked to G rows; rows that finish leave the batch.
Shapes: B prompts, G generations, R = rows still being decoded, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache

from arcvideo.data.prompts import Prompt
from arcvideo.rollout.cache import fork, keep_rows
from arcvideo.rollout.draw import draw, filtered, uniforms
from arcvideo.rollout.groups import Completion, Group
from arcvideo.rollout.prefill import prefill
from arcvideo.rollout.settings import Sampling

STOP_STRINGS = ("<|endoftext|>", "<|eos|>")
"""Tokens that end a completion (spec 1.9)."""
COMPACT_SHARE = 0.75
"""The batch shrinks when fewer than this share of its rows is still unfinished; shrinking copies the cache."""


class Sampler:
    """Draws groups of completions from a model in this process."""

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any,
        features: Any = None,
        weights: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Wrap a model.

        Args:
            model: an `ArcVideoForConditionalGeneration`.
            tokenizer: its tokenizer; gives the stop tokens, the tokens never to be sampled, and the texts.
            features: a `FeatureStore` of tower outputs, or None.
            weights: entered around every call of `sample`; a ZeRO-3 engine gathers its weights in it.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.features = features
        self.weights = weights
        self.stop_ids = stop_ids(tokenizer)
        self.banned_ids = banned_ids(tokenizer, stop=self.stop_ids)

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Prompt], *, num_generations: int, settings: Sampling, seeds: Sequence[int]
    ) -> list[Group]:
        """One group per prompt, in order.

        Args:
            prompts: may repeat; prompts about the same clip share its prefill.
            num_generations: completions per prompt.
            settings: temperature, filters, lengths.
            seeds: one per prompt; with the prompt's key it fixes the noise of each of its completions.
        """
        assert len(seeds) == len(prompts), "one seed per prompt"
        groups: list[Group] = []
        training = self.model.training
        self.model.eval()
        try:
            with self.weights():
                for start in range(0, len(prompts), settings.batch_prompts):
                    part = slice(start, start + settings.batch_prompts)
                    noise = _noise(prompts[part], seeds=seeds[part], num_generations=num_generations, settings=settings)
                    groups += self._sample_batch(prompts[part], noise=noise, settings=settings)
        finally:
            self.model.train(training)
        return groups

    def _sample_batch(self, prompts: Sequence[Prompt], *, noise: Tensor, settings: Sampling) -> list[Group]:
        """Prefill B prompts, decode B * G rows; noise is (B, G, max_new_tokens)."""
        generations = noise.shape[1]
        prefilled = prefill(self.model, prompts, features=self.features)
        rows = torch.arange(len(prompts), device=prefilled.logits.device).repeat_interleave(generations)
        state = _Decoding(
            cache=fork(prefilled.cache, rows=rows, room=settings.max_new_tokens),
            logits=prefilled.logits[rows],
            mask=prefilled.mask[rows],
            next_positions=prefilled.mask.sum(dim=1)[rows],
            noise=noise.flatten(0, 1),
        )
        del prefilled
        ids, logprobs, lengths, finished = self._decode(state, settings=settings)
        completions = [
            self._completion(
                ids[row, : lengths[row]], logprobs=logprobs[row, : lengths[row]], finished=bool(finished[row])
            )
            for row in range(len(rows))
        ]
        return [
            Group(prompt=prompt, completions=tuple(completions[index * generations : (index + 1) * generations]))
            for index, prompt in enumerate(prompts)
        ]

    def _decode(self, state: _Decoding, *, settings: Sampling) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
            going = ~finished[live]
            if not bool(going.any()) or step + 1 == settings.max_new_tokens:
                break
            if going.float().mean() < COMPACT_SHARE:
                keep = going.nonzero().squeeze(1)
                keep_rows(state.cache, rows=keep)
                state.mask, state.next_positions = state.mask[keep], state.next_positions[keep]
                live, tokens = live[keep], tokens[keep]
            self._advance(state, tokens=tokens)
        return ids.cpu(), logprobs.cpu(), lengths.cpu(), finished.cpu()

    def _advance(self, state: _Decoding, *, tokens: Tensor) -> None:
        """Feed one token per row; afterwards state.logits belong to the next one."""
        state.mask = torch.cat([state.mask, torch.ones_like(state.mask[:, :1])], dim=1)
        output = self.model(
            input_ids=tokens[:, None],
            position_ids=state.next_positions[:, None, None].expand(-1, 4, 1),  # a text token: same on all axes
            attention_mask=state.mask.long(),
            past_key_values=state.cache,
        )
        state.next_positions = state.next_positions + 1
        state.logits = output.logits[:, -1].float()

    def _completion(self, ids: Tensor, *, logprobs: Tensor, finished: bool) -> Completion:
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return Completion(ids=ids.clone(), logprobs=logprobs.clone(), finished=finished, text=text)


@dataclass(kw_only=True)
class _Decoding:
    """What changes from token to token."""

    cache: Cache
    logits: Tensor
    """(R, V) float32 of the token to draw."""
    mask: Tensor
    """(R, cached tokens) bool."""
    next_positions: Tensor
    """(R,) int64: position of the token to draw, the number of real tokens before it."""
    noise: Tensor
    """(all rows, max_new_tokens) float64 on CPU, never compacted."""


def _choose(logits: Tensor, *, noise: Tensor, banned: Tensor, settings: Sampling) -> tuple[Tensor, Tensor]:
    """(R,) tokens and their (R,) log-probabilities under the unfiltered model, as the trainer will compute them."""
    scaled = logits / settings.temperature if settings.temperature > 0 else logits
    allowed = scaled.index_fill(1, banned, float("-inf"))
    if settings.temperature > 0:
        tokens = draw(filtered(allowed, top_k=settings.top_k, top_p=settings.top_p), noise=noise)
    else:
        tokens = allowed.argmax(dim=-1)
    return tokens, -F.cross_entropy(scaled, tokens, reduction="none")


def _noise(prompts: Sequence[Prompt], *, seeds: Sequence[int], num_generations: int, settings: Sampling) -> Tensor:
    """(B, G, max_new_tokens) float64 on CPU."""
    if settings.temperature == 0:
        return torch.zeros(len(prompts), num_generations, settings.max_new_tokens, dtype=torch.float64)
    rows = [
        uniforms(seed=seed, key=prompt.key, generation=generation, count=settings.max_new_tokens)
        for prompt, seed in zip(prompts, seeds, strict=True)
        for generation in range(num_generations)
    ]
    return torch.stack(rows).view(len(prompts), num_generations, settings.max_new_tokens)


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that end a completion.

    Raises:
        ValueError: the tokenizer has none of them.
    """
    known = tokenizer.get_vocab()
    found = frozenset(known[name] for name in STOP_STRINGS if name in known)
    if not found:
        raise ValueError(f"the tokenizer has none of {STOP_STRINGS}; a completion could never end")
    return found


def banned_ids(tokenizer: Any, *, stop: frozenset[int]) -> frozenset[int]:
    """Special ids that are never sampled: a sampled image token would be read as a place for media."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special | set(tokenizer.all_special_ids)) - stop
