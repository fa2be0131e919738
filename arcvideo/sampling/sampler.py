"""The in-process sampler: decodes with the very model that is being trained or evaluated.

A clip is encoded and prefilled once, a question once; its keys and values are shared by its G rows; rows that finish
leave the batch.
Shapes: B prompts, G generations, R = rows still being decoded, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from arcvideo.feed.prompts import Prompt
from arcvideo.model.special import ALL_SPECIALS
from arcvideo.sampling.draw import draw, filtered, uniforms
from arcvideo.sampling.forked import ForkedCache
from arcvideo.sampling.graph import GraphStep
from arcvideo.sampling.groups import Completion, Group
from arcvideo.sampling.prefill import prefill
from arcvideo.sampling.settings import Sampling

STOP_STRINGS = ("<|endoftext|>", "<|eos|>")
"""Tokens that end a completion."""
COMPACT_SHARE = 0.75
"""The batch shrinks when fewer than this share of its rows is unfinished; shrinking copies the rows' own tokens."""


class InProcessSampler:
    """The `Sampler` that draws groups of completions from a model in this process."""

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
        self.seconds = {"prefill": 0.0, "decode": 0.0}
        """Time spent since the start, for whoever wants to know where a rollout's time goes."""
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
        began = time.perf_counter()
        prefilled = prefill(self.model, prompts, features=self.features)
        rows = torch.arange(len(prompts), device=prefilled.logits.device).repeat_interleave(generations)
        state = _Decoding(
            cache=ForkedCache(
                prefilled.cache,
                mask=prefilled.mask,
                generations=generations,
                room=settings.max_new_tokens,
                static=settings.decode != "dynamic",
            ),
            logits=prefilled.logits[rows],
            next_positions=prefilled.next_positions[rows],
            noise=noise.flatten(0, 1),
        )
        del prefilled
        began = self._count("prefill", since=began)
        ids, logprobs, lengths, finished = self._decode(state, settings=settings)
        self._count("decode", since=began)
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

    def _count(self, name: str, *, since: float) -> float:
        """Book the time since then; returns now."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] += now - since
        return now

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

    def _says(self, ids: Tensor, stop: Sequence[str]) -> bool:
        """Whether the end of a completion holds a stop string; a token has at least one byte, so few tokens do."""
        tail = ids[-max(len(text.encode()) for text in stop) :].tolist()
        said = self.tokenizer.decode(tail, skip_special_tokens=True)
        return any(text in said for text in stop)

    def _advance(self, state: _Decoding, *, tokens: Tensor, settings: Sampling) -> None:
        """Feed one token per row; afterwards state.logits belong to the next one."""
        if settings.decode == "cuda_graph" and state.graph is None:
            state.graph = GraphStep(self.model, cache=state.cache, rows=len(tokens))
        step = state.graph or self._step
        state.logits = step(tokens, state.next_positions, state.cache)
        state.cache.advance()
        state.next_positions = state.next_positions + 1

    def _step(self, tokens: Tensor, positions: Tensor, cache: ForkedCache) -> Tensor:
        """(R, V) float32 logits behind one more token a row."""
        output = self.model(
            input_ids=tokens[:, None],
            position_ids=positions[:, None, None].expand(-1, 4, 1),  # a text token: same on all axes
            past_key_values=cache,
        )
        return output.logits[:, -1].float()

    def _completion(self, ids: Tensor, *, logprobs: Tensor, finished: bool) -> Completion:
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return Completion(ids=ids.clone(), logprobs=logprobs.clone(), finished=finished, text=text)


@dataclass(kw_only=True)
class _Decoding:
    """What changes from token to token."""

    cache: ForkedCache
    logits: Tensor
    """(R, V) float32 of the token to draw."""
    next_positions: Tensor
    """(R,) int64: position of the token to draw, on all axes."""
    noise: Tensor
    """(all rows, max_new_tokens) float64 on CPU, never compacted."""
    graph: GraphStep | None = None
    """The captured step, once there is one."""


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
    known = tokenizer.get_vocab()
    media = {known[name] for name in ALL_SPECIALS if name in known}  # whether or not they are marked special
    return frozenset(special | media | set(tokenizer.all_special_ids)) - stop
