"""What a rollout needs of whatever decodes; `docs/rollout.md` tells what an engine outside this process provides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from arcvideo.feed.prompts import Prompt
from arcvideo.sampling.groups import Group
from arcvideo.sampling.settings import Sampling


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
