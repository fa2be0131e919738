"""Which prompts are asked at which step (reinforcement learning), and which items an evaluation asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcvideo.planning.families import Family
from arcvideo.planning.random_words import permutation
from arcvideo.planning.table import Ints, SourceTable, prefix_tokens
from arcvideo.planning.visits import BOTH, MODALITY_NAMES, draw_visits


class PromptPlan:
    """An endless stream of prompts, epoch after epoch; a step takes the next `count` of it."""

    def __init__(self, tables: Sequence[SourceTable], *, seed: int) -> None:
        self.tables = tuple(tables)
        self.seed = seed
        self._first = [0]
        self._epoch: tuple[int, _Prompts | None] = (-1, None)

    def step(self, step: int, *, count: int, rank: int = 0, world: int = 1) -> list[Family]:
        """Return the prompts of a rank, as families of one item, in the order of `places`."""
        return [self.prompt(place) for place in self.places(step, count=count, rank=rank, world=world)]

    @staticmethod
    def places(step: int, *, count: int, rank: int = 0, world: int = 1) -> range:
        """Return the places of a rank's prompts in the stream: every `world`-th of the `count` of the step."""
        return range(step * count + rank, (step + 1) * count, world)

    def prompt(self, place: int) -> Family:
        """Return the prompt at a place of the stream."""
        epoch = max(0, int(np.searchsorted(self._first, place, side="right")) - 1)
        while self.first(epoch + 1) <= place:
            epoch += 1
        return self.epoch(epoch).family(place - self.first(epoch))

    def first(self, epoch: int) -> int:
        """Return prompts before an epoch."""
        while len(self._first) <= epoch:
            self._first.append(self._first[-1] + len(self.epoch(len(self._first) - 1).item))
        return self._first[epoch]

    def epoch(self, number: int) -> _Prompts:
        """Return all prompts of an epoch, in order; the last epoch asked for is kept."""
        drawn, prompts = self._epoch
        if drawn != number or prompts is None:
            parts = [
                _drawn(table, source=source, seed=self.seed, epoch=number) for source, table in enumerate(self.tables)
            ]
            columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
            order = permutation(len(columns["item"]), self.seed, number, "prompts")
            prompts = _Prompts(**{name: column[order] for name, column in columns.items()})
            self._epoch = (number, prompts)
        return prompts


@dataclass(frozen=True, kw_only=True)
class _Prompts:
    """The prompts of an epoch as columns: families of one item."""

    source: Ints
    clip: Ints
    item: Ints
    tokens: Ints
    modality: npt.NDArray[np.int8]
    seed: Ints

    def family(self, number: int) -> Family:
        return Family(
            source=int(self.source[number]),
            clip=int(self.clip[number]),
            items=(int(self.item[number]),),
            tokens=int(self.tokens[number]),
            modality=MODALITY_NAMES[self.modality[number]],
            seed=int(self.seed[number]),
        )


def _drawn(table: SourceTable, *, source: int, seed: int, epoch: int) -> _Prompts:
    visits = draw_visits(table, seed=seed, epoch=epoch)
    visit = np.repeat(np.arange(len(visits.clip)), np.diff(visits.item_start))
    media, rows = visits.clip_rows["media_tokens"][visit], visits.item_rows
    return _Prompts(
        source=np.full(len(visit), source),
        clip=visits.clip[visit],
        item=visits.item,
        tokens=prefix_tokens(rows["before"].astype(np.int64), media) + rows["branch"],
        modality=visits.modality[visit],
        seed=visits.seed[visit],
    )


def evaluation_families(table: SourceTable, *, source: int, per_task: int | None) -> list[Family]:
    """Return items in index order, those of a clip together; with `per_task`, that many of each task at equal
    distances.
    """
    chosen = np.arange(table.items)
    if per_task is not None:
        parts = [np.flatnonzero(table.item_task == task) for task in range(len(table.tasks))]
        chosen = np.sort(np.concatenate([part[_spread(len(part), per_task)] for part in parts]))
    clip, group = table.item_clip[chosen], table.item_group[chosen]
    order = np.lexsort((chosen, group, clip))
    chosen, clip, group = chosen[order], clip[order], group[order]
    first = np.ones(len(chosen), dtype=bool)
    first[1:] = (clip[1:] != clip[:-1]) | (group[1:] != group[:-1])
    lo = np.flatnonzero(first)
    tokens, hi = table.tokens[chosen], np.append(lo[1:], len(chosen))
    modality = MODALITY_NAMES.index(table.settings.modality)
    return [
        Family(
            source=source,
            clip=int(clip[start]),
            items=tuple(chosen[start:stop].tolist()),
            tokens=int(tokens[start:stop].max()),
            modality=MODALITY_NAMES[modality if table.both[clip[start]] else BOTH],
            seed=0,
        )
        for start, stop in zip(lo.tolist(), hi.tolist(), strict=True)
    ]


def _spread(count: int, wanted: int) -> Ints:
    """`wanted` of 0..count-1 at equal distances, or all of them."""
    return np.arange(count) if count <= wanted else np.arange(wanted) * count // wanted
