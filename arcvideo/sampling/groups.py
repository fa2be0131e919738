"""What a rollout asks of whatever decodes, and what comes back: for each prompt a group of completions.

`docs/rollout.md` tells what an engine outside this process provides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from arcvideo.feed.prompts import Prompt
from arcvideo.sampling.settings import Sampling


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer."""

    ids: Tensor
    """(C,) int64 on CPU, with the stop token when finished."""
    logprobs: Tensor
    """(C,) float32 on CPU: log-probabilities at the sampling temperature, over the whole vocabulary."""
    finished: bool
    """False: cut off at max_new_tokens."""
    text: str
    """Decoded without special tokens."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """All completions of one prompt."""

    prompt: Prompt
    """What was asked."""
    completions: tuple[Completion, ...]
    """In order of generation."""


def place_of(prompt: Prompt) -> int:
    """Return what identifies a prompt in training, its place in the stream of prompts.

    Its key does not: the key comes again in another source, in another epoch and in the next pass of a source.
    """
    assert prompt.place is not None, f"prompt {prompt.key} of a rollout has no place"
    return prompt.place


class Sampler(Protocol):
    """Draws groups of completions from the policy as it is now."""

    seconds: dict[str, float]
    """Time spent so far in `prefill` and in `decode`."""

    def sample(
        self, prompts: Sequence[Prompt], *, num_generations: int, settings: Sampling, seeds: Sequence[int]
    ) -> list[Group]:
        """Return one group per prompt, in order; a pure function of (weights, prompt, settings, seed of the prompt).

        Args:
            prompts: may repeat a clip; what else is in the list must not change a prompt's completions.
            num_generations: completions per prompt.
            settings: temperature, filters, lengths, stops.
            seeds: one per prompt.
        """
        ...
