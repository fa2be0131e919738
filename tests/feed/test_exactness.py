"""The same samples in the same packs, whatever the number of ranks and workers, and wherever a run was killed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from itertools import cycle
from random import Random

import pytest

from arcvideo.feed.source import Source
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.shards.write import Record, write_shards
from arcvideo.types import Batch
from tests.data import build

SAMPLES = 2000
PACKS = 4


@pytest.fixture(scope="module", params=["epochs", "tokens"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    """Two sources that make 2,000 samples in a little more than an epoch: 800 texts of three items, and 12 clips of
    seven items that share each clip's prefix."""
    folder = tmp_path_factory.mktemp("exactness")

    def items(number: int) -> list[dict[str, object]]:
        return [{"task": "caption", "answer": "red " * (1 + (number * 7 + k * 3) % 25)} for k in range(3)]

    write_shards(
        (Record(key=f"r{number:04d}", content={"items": items(number)}, media={}) for number in range(800)),
        out=folder,
        name="text",
        per_shard=300,
    )
    weight, repeat = {"epochs": (0.9, None), "tokens": (0.6, 1.1)}[request.param]
    sources = {
        "text": SourceSettings(shards=f"{folder}/text-*.tar", items_per_clip=2, weight=weight),
        "clips": SourceSettings(shards=build.shards(folder), drop_audio=0.2, weight=1.0, repeat=repeat),
    }
    return DataSettings(unit=request.param, sources=sources, wording="brief", token_budget=512, packs_per_step=PACKS)


def opened(settings: DataSettings, *, workers: int = 0, rank: int = 0, world: int = 1) -> Source:
    changed = DataSettings(**{**vars(settings), "workers": workers})
    return Source(changed, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=5, rank=rank, world=world)


def content(batch: Batch) -> bytes:
    """Everything of a pack that a model could see."""
    tensors = (batch.input_ids, batch.position_ids, batch.target_positions, batch.target_ids, batch.target_weights)
    segments = (batch.segments.starts, batch.segments.parents)
    media = [(media.key, media.has_video, media.has_audio, media.seconds) for media in batch.media]
    parts = [repr((batch.keys, media)).encode(), *(tensor.numpy().tobytes() for tensor in (*tensors, *segments))]
    return b"".join(parts)


def digests(
    settings: DataSettings, *, steps: int, worlds: Sequence[int], workers: int = 0, kills: Collection[int] = ()
) -> list[str]:
    """Of each step; at each kill point all ranks start anew, as many as `worlds` says in turn, at that step."""
    left = cycle(worlds)
    ranks: list[Source] = []
    found = []
    for step in range(steps):
        if not ranks or step in kills:
            for rank in ranks:
                rank.close()
            world = next(left)
            ranks = [opened(settings, workers=workers, rank=rank, world=world) for rank in range(world)]
        shares = [rank.batches(step) for rank in ranks]
        merged = [shares[number % world][number // world] for number in range(PACKS)]
        found.append(hashlib.sha256(b"".join(map(content, merged))).hexdigest())
    for rank in ranks:
        rank.close()
    return found


@pytest.fixture(scope="module")
def straight(settings: DataSettings) -> list[str]:
    source = opened(settings)
    samples = steps = 0
    while samples < SAMPLES:
        samples += sum(len(batch.keys) for batch in source.batches(steps))
        steps += 1
    assert steps > source.steps_per_epoch  # so that the end of an epoch is among them
    return digests(settings, steps=steps, worlds=[1])


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_first_samples_and_their_packs_are_the_same(
    settings: DataSettings, straight: list[str], world: int, workers: int
) -> None:
    steps = len(straight)
    kills = Random(10 * world + workers).sample(range(1, steps), 3)
    assert digests(settings, steps=steps, worlds=[world], workers=workers, kills=kills) == straight


def test_the_number_of_ranks_may_change_at_each_restart(settings: DataSettings, straight: list[str]) -> None:
    steps = len(straight)
    kills = range(1, steps, 1 + steps // 6)
    assert digests(settings, steps=steps, worlds=[4, 1, 2], kills=kills) == straight


def test_packs_hold_families_of_both_sources(settings: DataSettings, straight: list[str]) -> None:
    source = opened(settings)
    packs = [pack for step in range(len(straight)) for pack in source.plan.step(step)]
    assert {len({family.source for family in pack}) for pack in packs} >= {2}
    assert max(len(family.items) for pack in packs for family in pack if family.source == 1) > 1


def test_another_seed_is_another_order(settings: DataSettings, straight: list[str]) -> None:
    other = Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=6)
    assert hashlib.sha256(b"".join(map(content, other.batches(0)))).hexdigest() not in straight
