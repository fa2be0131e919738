"""Advantages of completions that lie on several ranks."""

from __future__ import annotations

import pytest
import torch

from arcvideo.objectives.settings import GrpoSettings
from arcvideo.processes.ranks import World, gather_json
from arcvideo.rollout.rows import gains_of
from tests.runner.job import run_ranks

REWARDS = [[1.0, 0.0, 0.0, 0.5, 0.5, 0.5], [0.0, 4.0, 1.0]]
"""Two groups of three on the first rank, one on the second."""
TASKS = [["mcq"] * 3 + ["grounding"] * 3, ["grounding"] * 3]


def on_rank(*, world: World, scale: str, weights: dict[str, float]) -> list[list[float]]:
    """The advantages of every rank's own completions, in the order of the ranks."""
    settings = GrpoSettings(num_generations=3, scale_rewards=scale, task_weights=weights)
    mine = gains_of(torch.tensor(REWARDS[world.rank]), tasks=TASKS[world.rank], settings=settings)
    return gather_json(mine.tolist(), world=world)


def expected(scale: str, weights: dict[str, float]) -> list[list[float]]:
    """Reward minus the mean of its group, over the deviation of the group or of all completions of all ranks."""
    everyone = torch.tensor([value for rank in REWARDS for value in rank])
    groups = everyone.view(-1, 3)
    divisor = {"batch": everyone.std() + 1e-4, "group": groups.std(1, keepdim=True) + 1e-4, "none": 1.0}[scale]
    gains = ((groups - groups.mean(1, keepdim=True)) / divisor).flatten()
    worth = torch.tensor([weights.get(task, 1.0) for rank in TASKS for task in rank])
    first = len(REWARDS[0])
    return [(gains * worth)[:first].tolist(), (gains * worth)[first:].tolist()]


@pytest.mark.parametrize("weights", [{}, {"grounding": 0.5}], ids=str)
@pytest.mark.parametrize("scale", ["batch", "group", "none"])
def test_every_rank_gets_the_advantages_of_its_own_completions(scale: str, weights: dict[str, float]) -> None:
    (found,) = run_ranks([{"do": "tests.rollout.test_gains:on_rank", "scale": scale, "weights": weights}], ranks=2)
    for here, there in zip(found, expected(scale, weights), strict=True):
        assert here == pytest.approx(there, abs=1e-6)
