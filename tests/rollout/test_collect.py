"""Dynamic sampling: groups that teach nothing are replaced from the step's own stretch of the prompt stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.collect import Collected, collect, joined
from arcvideo.rollout.rewards.score import Scores
from arcvideo.sampling.groups import Completion, Group
from tests.rollout.world import make_prompt

SETTINGS = GrpoSettings(
    num_generations=2, num_prompts=4, drop_zero_variance=True, max_refills=2, rewards={f"{__name__}:letters": 1.0}
)


def letters(completions: Sequence[str], **columns: Any) -> list[float]:
    return [float(text.count("a")) for text in completions]


def group(key: str, *texts: str, place: int = 0) -> Group:
    ids = torch.tensor([1])
    return Group(
        prompt=replace(make_prompt(key), place=place),
        completions=tuple(Completion(ids=ids, logprobs=torch.zeros(1), finished=True, text=text) for text in texts),
    )


def varied(prompt: int) -> bool:
    return prompt % 3 == 0


def chunk_of(number: int, *, rank: int = 0, ranks: int = 1) -> list[Group]:
    """This rank's groups of a chunk; every third prompt of the stream has a better and a worse completion."""
    places = range(number * 4 + rank, (number + 1) * 4, ranks)
    return [group(f"p{place}", "a", "b" if varied(place) else "a", place=place) for place in places]


def keys(found: Collected) -> list[str]:
    return [found.groups[number].prompt.key for number in found.chosen]


def run(rollout: int, *, settings: GrpoSettings = SETTINGS) -> tuple[Collected, list[int]]:
    asked: list[int] = []

    def sample(chunk: int) -> list[Group]:
        asked.append(chunk)
        return chunk_of(chunk)

    return collect(sample, rollout=rollout, settings=settings, clock=lambda: 0.0), asked


def test_a_step_owns_its_chunks_and_stops_when_it_has_enough() -> None:
    found, asked = run(0)
    assert asked == [0, 1, 2]
    assert sorted(keys(found)) == ["p0", "p3", "p6", "p9"]
    _, second = run(1)
    assert second == [3, 4, 5]
    wide = replace(SETTINGS, num_prompts=2)
    found, asked = run(0, settings=wide)
    assert asked == [0]  # two of the first four vary
    assert len(found.chosen) == 2


def test_prompts_with_equal_keys_are_counted_one_by_one() -> None:
    found = collect(
        lambda chunk: [group("twin", "a", "b", place=4 * chunk + number) for number in range(4)],
        rollout=0,
        settings=replace(SETTINGS, num_prompts=3),
        clock=lambda: 0.0,
    )
    assert found.chosen == [0, 1, 2]


def test_the_groups_kept_are_the_first_of_the_stream_whichever_rank_has_them() -> None:
    wide = replace(SETTINGS, num_prompts=2)
    found = collect(
        lambda chunk: [group(key, "a", "b", place=place) for place, key in ((9, "c"), (3, "a"), (6, "b"))],
        rollout=0,
        settings=wide,
        clock=lambda: 0.0,
    )
    assert keys(found) == ["a", "b"]


def test_without_refills_nothing_is_drawn_again_and_every_group_stays() -> None:
    found, asked = run(1, settings=replace(SETTINGS, max_refills=0))
    assert asked == [1]
    assert found.chosen == [0, 1, 2, 3]


def test_when_nothing_varies_the_first_chunk_stays_for_the_kl() -> None:
    found = collect(
        lambda chunk: [group(f"c{chunk}-{i}", "a", "a") for i in range(4)],
        rollout=0,
        settings=SETTINGS,
        clock=lambda: 0.0,
    )
    assert keys(found) == ["c0-0", "c0-1", "c0-2", "c0-3"]
    assert len(found.groups) == 12


def test_scores_of_chunks_join_even_when_one_lacks_a_reward() -> None:
    first = Scores(total=torch.ones(2), parts={"x": torch.ones(2)}, notes={"x": {"read": ["1", None]}})
    second = Scores(total=torch.zeros(1), parts={"y": torch.zeros(1)}, notes={"y": {"problem": ["none"]}})
    both = joined([first, second])
    assert both.total.tolist() == [1, 1, 0]
    assert both.parts["x"].isnan().tolist() == [False, False, True]
    assert both.notes == {"x": {"read": ["1", None, None]}, "y": {"problem": [None, None, "none"]}}


def test_refills_without_dropping_are_refused() -> None:
    with pytest.raises(ValueError, match="drop_zero_variance"):
        GrpoSettings(max_refills=1)


def test_prompts_of_a_chunk_may_be_missing() -> None:
    def sample(chunk: int) -> list[Group]:
        return [] if chunk == 0 else chunk_of(chunk)

    found = collect(sample, rollout=0, settings=SETTINGS, clock=lambda: 0.0)
    assert sorted(keys(found)) == ["p6", "p9"]
