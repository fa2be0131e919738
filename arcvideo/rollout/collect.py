"""Which sampled groups a step trains on: all of them, or, with refills, those whose rewards differ (DAPO).

https://arxiv.org/abs/2503.14476, dynamic sampling. Step r owns 1 + `grpo.max_refills` chunks of the prompt stream, one
behind the other, whether or not it comes to need them: what it is asked depends neither on earlier steps nor on ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arcvideo.objectives.grpo import group_std
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.measure import ZERO_STD, gathered
from arcvideo.rollout.rewards.score import Scores, score
from arcvideo.sampling.groups import Group, place_of


@dataclass(frozen=True, kw_only=True)
class Collected:
    """This rank's groups of a step."""

    groups: list[Group]
    """All that were sampled, n completions in all."""
    scores: Scores
    """Of all of them."""
    spread: Tensor
    """(n,) float32 std of each completion's group."""
    chosen: list[int]
    """Numbers of the groups to train on, in order."""
    seconds: float
    """Spent in rewards, by the clock given."""


def collect(
    sample: Callable[[int], list[Group]], *, rollout: int, settings: GrpoSettings, clock: Callable[[], float]
) -> Collected:
    """Sample, score and, while groups are missing that can be learned from, sample the step's next chunk.

    Args:
        sample: this rank's groups of a chunk of the prompt stream; all ranks call it together.
        rollout: number of the rollout.
        settings: `max_refills`, `num_prompts`, rewards.
        clock: seconds.
    """
    rounds = 1 + settings.max_refills
    groups: list[Group] = []
    chunks: list[int] = []
    parts: list[Scores] = []
    spent = 0.0
    for number in range(rounds):
        chunk = rollout * rounds + number
        new = sample(chunk)
        began = clock()
        parts.append(score(new, settings=settings))
        spent += clock() - began
        groups += new
        chunks += [chunk] * len(new)
        scores = joined(parts)
        spread = _spread(scores.total, settings=settings)
        if not settings.max_refills:
            chosen = list(range(len(groups)))
            break
        chosen, enough = _chosen(groups, chunks=chunks, first=rollout * rounds, spread=spread, settings=settings)
        if enough:
            break
    return Collected(groups=groups, scores=scores, spread=spread, chosen=chosen, seconds=spent)


def _spread(total: Tensor, *, settings: GrpoSettings) -> Tensor:
    return group_std(total, groups=torch.arange(len(total)) // settings.num_generations)


def _chosen(
    groups: Sequence[Group], *, chunks: Sequence[int], first: int, spread: Tensor, settings: GrpoSettings
) -> tuple[list[int], bool]:
    """Return this rank's share of the first `num_prompts` groups that vary, and whether there are that many.

    First is by place in the prompt stream: ranks, and prompts that could not be read, do not change it, and equal
    prompts stay apart. Without any group that varies, the groups of the first chunk remain, for the KL.
    """
    varied: list[bool] = (spread.view(-1, settings.num_generations)[:, 0] > ZERO_STD).tolist() if len(spread) else []
    mine = [place_of(group.prompt) for group in groups]
    useful = [place for place, good in zip(mine, varied, strict=True) if good]
    everyone = sorted(place for part in gathered(useful) for place in part)
    if not everyone:
        return [number for number, chunk in enumerate(chunks) if chunk == first], False
    kept = set(everyone[: settings.num_prompts])
    chosen = [number for number, (place, good) in enumerate(zip(mine, varied, strict=True)) if good and place in kept]
    return chosen, len(everyone) >= settings.num_prompts


def joined(parts: Sequence[Scores]) -> Scores:
    """Return the scores of several chunks as one; a reward that a chunk did not use gave it nothing."""
    if len(parts) == 1:
        return parts[0]
    sizes = [len(part.total) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part.parts)

    def column(name: str) -> Tensor:
        pieces = zip(parts, sizes, strict=True)
        return torch.cat([part.parts.get(name, torch.full((size,), math.nan)) for part, size in pieces])

    def remarks(name: str, note: str) -> list[Any]:
        pieces = zip(parts, sizes, strict=True)
        return [value for part, size in pieces for value in part.notes.get(name, {}).get(note, [None] * size)]

    return Scores(
        total=torch.cat([part.total for part in parts]),
        parts={name: column(name) for name in names},
        notes={
            name: {note: remarks(name, note) for part in parts for note in part.notes.get(name, {})} for name in names
        },
    )
