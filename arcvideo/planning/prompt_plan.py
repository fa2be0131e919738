"""Which prompts are asked at which step (reinforcement learning), and which items an evaluation asks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arcvideo.planning.families import Family
from arcvideo.planning.mixture import Ints, SourceTable
from arcvideo.planning.random_words import permutation
from arcvideo.planning.visits import BOTH, MODALITY_NAMES, draw_visits


class PromptPlan:
    """An endless stream of prompts, epoch after epoch; a step takes the next `count` of it."""

    def __init__(self, tables: Sequence[SourceTable], *, seed: int) -> None:
        self.tables = tuple(tables)
        self.seed = seed
        self._first = [0]
        self._epoch: tuple[int, list[Family]] = (-1, [])

    def step(self, step: int, *, count: int, rank: int = 0, world: int = 1) -> list[Family]:
        """The prompts of a rank, as families of one item, in the order of `places`."""
        return [self.prompt(place) for place in self.places(step, count=count, rank=rank, world=world)]

    @staticmethod
    def places(step: int, *, count: int, rank: int = 0, world: int = 1) -> range:
        """Return the places of a rank's prompts in the stream: every `world`-th of the `count` of the step."""
        return range(step * count + rank, (step + 1) * count, world)

    def prompt(self, place: int) -> Family:
        """The prompt at a place of the stream."""
        epoch = max(0, int(np.searchsorted(self._first, place, side="right")) - 1)
        while self.first(epoch + 1) <= place:
            epoch += 1
        return self.epoch(epoch)[place - self.first(epoch)]

    def first(self, epoch: int) -> int:
        """Prompts before an epoch."""
        while len(self._first) <= epoch:
            self._first.append(self._first[-1] + len(self.epoch(len(self._first) - 1)))
        return self._first[epoch]

    def epoch(self, number: int) -> list[Family]:
        """All prompts of an epoch, in order; the last epoch asked for is kept."""
        if self._epoch[0] != number:
            families = [
                family
                for source, table in enumerate(self.tables)
                for family in _drawn(table, source=source, seed=self.seed, epoch=number)
            ]
            order = permutation(len(families), self.seed, number, "prompts")
            self._epoch = (number, [families[place] for place in order])
        return self._epoch[1]


def _drawn(table: SourceTable, *, source: int, seed: int, epoch: int) -> list[Family]:
    visits = draw_visits(table, seed=seed, epoch=epoch)
    visit = np.repeat(np.arange(len(visits.clip)), np.diff(visits.item_start))
    clip = visits.clip[visit]
    tokens = table.tokens[visits.item]
    columns = (clip, visits.item, tokens, visits.modality[visit], visits.seed[visit])
    return [
        Family(source=source, clip=place, items=(item,), tokens=length, modality=MODALITY_NAMES[modality], seed=frames)
        for place, item, length, modality, frames in zip(*(column.tolist() for column in columns), strict=True)
    ]


def evaluation_families(table: SourceTable, *, source: int, per_task: int | None) -> list[Family]:
    """Items in index order, those of a clip together; with `per_task`, that many of each task at equal distances."""
    chosen = np.arange(table.items)
    if per_task is not None:
        parts = [np.flatnonzero(table.item_task == task) for task in range(len(table.tasks))]
        chosen = np.sort(np.concatenate([part[_spread(len(part), per_task)] for part in parts]))
    clip = table.item_clip[chosen]
    modality = MODALITY_NAMES.index(table.settings.modality)
    tokens = table.tokens
    families = []
    for place in np.unique(clip).tolist():
        items = chosen[clip == place]
        for group in np.unique(table.item_group[items]).tolist():
            same = items[table.item_group[items] == group]
            families.append(
                Family(
                    source=source,
                    clip=place,
                    items=tuple(same.tolist()),
                    tokens=int(tokens[same].max()),
                    modality=MODALITY_NAMES[modality if table.both[place] else BOTH],
                    seed=0,
                )
            )
    return families


def _spread(count: int, wanted: int) -> Ints:
    """`wanted` of 0..count-1 at equal distances, or all of them."""
    return np.arange(count) if count <= wanted else np.arange(wanted) * count // wanted
