"""The in-process sampler: decodes with the very model that is being trained or evaluated.

A clip is encoded and prefilled once, a question once; its keys and values are shared by its G rows; rows that finish
leave the batch (`decode.py`).
Shapes: B prompts, G generations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from arcvideo.feed.prompts import Prompt
from arcvideo.model.families.table import FAMILIES, family_of
from arcvideo.model.special import ALL_SPECIALS
from arcvideo.named import load
from arcvideo.objectives.settings import IN_PROCESS
from arcvideo.sampling.decode import Answers, Decoding, uniforms
from arcvideo.sampling.forked import ForkedCache
from arcvideo.sampling.graph import Graphs
from arcvideo.sampling.groups import Completion, Group
from arcvideo.sampling.prefill import prefill_all
from arcvideo.sampling.settings import Sampling
from arcvideo.sampling.step import step_of


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
        self._graphs: Graphs | None = None
        self.stop_ids = stop_ids(tokenizer)
        self.banned_ids = banned_ids(tokenizer, stop=self.stop_ids)

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Prompt], *, num_generations: int, settings: Sampling, seeds: Sequence[int]
    ) -> list[Group]:
        """Return one group per prompt, in order.

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
        device = next(self.model.parameters()).device
        ready = prefill_all(self.model, prompts, features=self.features)
        runs, order = ready.runs, ready.order
        firsts, positions = (x.repeat_interleave(generations, 0) for x in (ready.logits, ready.positions))
        del ready
        began = self._count("prefill", since=began)
        decode = decode_on(device.type, decode=settings.decode)
        cache = ForkedCache(runs, width=generations, room=settings.max_new_tokens, static=decode != "dynamic")
        end = max(prompt.length for prompt in prompts) + settings.max_new_tokens
        decoding = Decoding(
            cache=cache,
            step=step_of(self.model, cache=cache, end=end),
            positions=positions,
            noise=noise[order].flatten(0, 1),
            banned=torch.tensor(sorted(self.banned_ids), dtype=torch.int64, device=device),
            settings=settings,
            decode=decode,
            graphs=self._graphs_of(device, required=settings.decode == decode) if decode == "cuda_graph" else None,
        )
        del runs
        stop = torch.tensor(sorted(self.stop_ids))
        says = partial(self._says, stop=settings.stop) if settings.stop else None
        answers = decoding.run(firsts, stop=stop, says=says)
        self._count("decode", since=began)
        completions = [self._completion(answers, row) for row in range(len(answers.ids))]
        places = {number: place for place, number in enumerate(order)}
        return [
            Group(prompt=prompt, completions=tuple(completions[places[number] * generations :][:generations]))
            for number, prompt in enumerate(prompts)
        ]

    def _graphs_of(self, device: torch.device, *, required: bool) -> Graphs:
        """Return what captures turns, one for all rollouts: its memory pool is reused."""
        if self._graphs is None:
            self._graphs = Graphs(device=device, required=required)
        self._graphs.forget()
        return self._graphs

    def _count(self, name: str, *, since: float) -> float:
        """Book the time since then; returns now."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] += now - since
        return now

    def _says(self, ids: Tensor, stop: Sequence[str]) -> bool:
        """Return whether the end of a completion holds a stop string; a token has at least one byte, so few tokens
        do.
        """
        tail = ids[-max(len(text.encode()) for text in stop) :].tolist()
        said = self.tokenizer.decode(tail, skip_special_tokens=True)
        return any(text in said for text in stop)

    def _completion(self, answers: Answers, row: int) -> Completion:
        length = int(answers.lengths[row])
        ids = answers.ids[row, :length]
        return Completion(
            ids=ids.clone(),
            logprobs=answers.logprobs[row, :length].clone(),
            finished=bool(answers.finished[row]),
            text=self.tokenizer.decode(ids.tolist(), skip_special_tokens=True),
        )


def decode_on(device: str, *, decode: str) -> str:
    """Return how completions are decoded on a kind of device (cpu, cuda): as `decode` says, or what auto stands for."""
    if decode != "auto":
        return decode
    return "cuda_graph" if device == "cuda" else "dynamic"


def _noise(prompts: Sequence[Prompt], *, seeds: Sequence[int], num_generations: int, settings: Sampling) -> Tensor:
    """Return (B, G, max_new_tokens) float64 on CPU."""
    if settings.temperature == 0:
        return torch.zeros(len(prompts), num_generations, settings.max_new_tokens, dtype=torch.float64)
    rows = [
        uniforms(seed=seed, key=prompt.key, generation=generation, count=settings.max_new_tokens)
        for prompt, seed in zip(prompts, seeds, strict=True)
        for generation in range(num_generations)
    ]
    return torch.stack(rows).view(len(prompts), num_generations, settings.max_new_tokens)


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Return ids that end a completion: those that end an answer in the tokenizer's family.

    Raises:
        ValueError: the tokenizer has none of them.
    """
    vocabulary = tokenizer.get_vocab()
    endings = {family.strings[name] for family in FAMILIES.values() for name in ("end", "eos")}
    with suppress(ValueError):  # a tokenizer of no family
        endings = {family_of(tokenizer).strings[name] for name in ("end", "eos")}
    ids = frozenset(vocabulary[name] for name in endings if name in vocabulary)
    if not ids:
        raise ValueError(f"the tokenizer has none of {sorted(endings)}; a completion could never end")
    return ids


def banned_ids(tokenizer: Any, *, stop: frozenset[int]) -> frozenset[int]:
    """Return special ids that are never sampled: a sampled image token would be read as a place for media."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    vocabulary = tokenizer.get_vocab()
    media = {vocabulary[name] for name in ALL_SPECIALS if name in vocabulary}  # whether or not they are marked special
    return frozenset(special | media | set(tokenizer.all_special_ids)) - stop


def sampler_class(name: str) -> Any:
    """Return the class behind `grpo.sampler`: ours, or one of another package that is made and asked like ours.

    Raises:
        ValueError: it cannot be imported.
    """
    return InProcessSampler if name == IN_PROCESS else load(name, kind="samplers", key="grpo.sampler")
