"""A sampler: arcvideo's own, which notes how many completions it drew; another engine would take its place here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arcvideo.feed.prompts import Prompt
from arcvideo.sampling.groups import Group
from arcvideo.sampling.sampler import InProcessSampler
from arcvideo.sampling.settings import Sampling


class NotedSampler(InProcessSampler):
    """Draws as the sampler of arcvideo does, and says how much."""

    def sample(
        self, prompts: Sequence[Prompt], *, num_generations: int, settings: Sampling, seeds: Sequence[int], **more: Any
    ) -> list[Group]:
        """Return one group a prompt."""
        groups = super().sample(prompts, num_generations=num_generations, settings=settings, seeds=seeds, **more)
        print(f"noted sampler: {sum(len(group.completions) for group in groups)} completions", flush=True)
        return groups
