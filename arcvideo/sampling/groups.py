"""What a rollout returns: for each prompt a group of completions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from arcvideo.feed.prompts import Prompt


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
