"""Which clips a source gives in an epoch, in which order, and which of their items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcvideo.planning.mixture import Ints, SourceTable
from arcvideo.planning.random_words import permutation, uniforms, words
from arcvideo.planning.sizes import ragged

BOTH, VIDEO, AUDIO = 0, 1, 2
"""What a visit shows of its clip."""
MODALITY_NAMES = ("both", "video", "audio")


@dataclass(frozen=True, kw_only=True)
class Visits:
    """The visits of one source in one epoch: V clips, each with some of its items."""

    clip: Ints
    """(V,) clip of the table."""
    item_start: Ints
    """(V + 1,) cumulative counts of items."""
    item: Ints
    """(N,) item of the table, in record order inside a visit."""
    modality: npt.NDArray[np.int8]
    """(V,) BOTH, VIDEO or AUDIO."""
    seed: Ints
    """(V,) seed for random frames."""


def draw_visits(table: SourceTable, *, seed: int, epoch: int) -> Visits:
    """The visits of one epoch.

    A source is an endless stream of passes over all its clips, each in its own order; an epoch takes the next
    `passes` passes of it. So half a pass sees every clip once in two epochs.
    """
    per_epoch = max(1, round(table.passes * table.clips))
    stream = np.arange(epoch * per_epoch, (epoch + 1) * per_epoch)
    parts = [
        _visits_of_pass(table, places=stream[stream // table.clips == number] % table.clips, seed=seed, number=number)
        for number in range(stream[0] // table.clips, stream[-1] // table.clips + 1)
    ]
    sizes = np.concatenate([np.diff(part.item_start) for part in parts])
    return Visits(
        clip=np.concatenate([part.clip for part in parts]),
        item_start=np.concatenate([[0], np.cumsum(sizes)]),
        item=np.concatenate([part.item for part in parts]),
        modality=np.concatenate([part.modality for part in parts]),
        seed=np.concatenate([part.seed for part in parts]),
    )


def _visits_of_pass(table: SourceTable, *, places: Ints, seed: int, number: int) -> Visits:
    """The visits at these places of a pass; what a clip gives does not depend on its place."""
    key = (seed, table.name, number)
    clip = permutation(table.clips, *key, "order")[places]
    chosen = choose_items(table, uniforms(table.items, *key, "items"), count=table.settings.items_per_clip)
    starts = np.searchsorted(chosen, table.item_start)
    sizes = np.diff(starts)[clip]
    item_start = np.concatenate([[0], np.cumsum(sizes)])
    flat = ragged(starts[clip], sizes)
    return Visits(
        clip=clip,
        item_start=item_start,
        item=chosen[flat],
        modality=_modality(table, uniforms(table.clips, *key, "modality"))[clip],
        seed=(words(table.clips, *key, "frames") >> np.uint64(1)).astype(np.int64)[clip],
    )


def choose_items(table: SourceTable, uniform: npt.NDArray[np.float64], *, count: int) -> Ints:
    """(N,) items: up to `count` of each clip, drawn by weight without replacement, sorted; count 0 chooses all.

    The smallest of exponential variates with the items' rates are such a draw (Efraimidis and Spirakis, 2006).
    """
    if count == 0:
        return np.arange(table.items)
    clip = table.item_clip
    order = np.lexsort((-np.log(uniform) / table.item_weight, clip))
    rank = np.arange(table.items) - table.item_start[clip]
    return np.sort(order[rank < count])


def _modality(table: SourceTable, uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """(C,) what a visit of each clip shows. Only clips with picture and sound can lose one."""
    settings = table.settings
    shown = np.full(table.clips, MODALITY_NAMES.index(settings.modality), dtype=np.int8)
    if settings.modality == "both":
        shown[uniform < settings.drop_video + settings.drop_audio] = VIDEO
        shown[uniform < settings.drop_video] = AUDIO
    shown[~table.both] = BOTH
    return shown
