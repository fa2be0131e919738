"""Which clips a source gives at which place of its stream, and which of their items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcvideo.planning.random_words import permutation, shuffled, uniforms_at, words_at
from arcvideo.planning.table import Ints, SourceTable, ragged

BOTH, VIDEO, AUDIO = 0, 1, 2
"""What a visit shows of its clip."""
MODALITY_NAMES = ("both", "video", "audio")
STRATA = 1024
"""Classes of length from which clips are taken in turn where an epoch has many windows."""


@dataclass(frozen=True, kw_only=True)
class Visits:
    """Some visits of one source: V clips, each with some of its items."""

    clip: Ints
    """(V,) clip of the table."""
    clip_rows: np.ndarray
    """(V,) their rows."""
    item_start: Ints
    """(V + 1,) cumulative counts of items."""
    item: Ints
    """(N,) item of the table, in record order inside a visit."""
    item_rows: np.ndarray
    """(N,) their rows."""
    modality: npt.NDArray[np.int8]
    """(V,) BOTH, VIDEO or AUDIO."""
    seed: Ints
    """(V,) seed for random frames."""


def visits_per_epoch(table: SourceTable) -> int:
    """Return how many clips an epoch visits; one that is visited twice counts twice."""
    return max(1, round(table.passes * table.clips))


def draw_visits(table: SourceTable, *, seed: int, epoch: int) -> Visits:
    """Return the visits of one epoch."""
    per_epoch = visits_per_epoch(table)
    return visits_at(table, first=epoch * per_epoch, last=(epoch + 1) * per_epoch, seed=seed)


def visits_at(table: SourceTable, *, first: int, last: int, seed: int, even: bool = False) -> Visits:
    """Return the visits at places first, ..., last - 1 of a source's stream.

    A source is an endless stream of passes over all its clips, each in its own order; an epoch takes the next
    `passes` passes of it. So half a pass sees every clip once in two epochs. The order of a pass is a permutation of
    which any part can be computed alone.

    Args:
        table: of the source.
        first: place.
        last: place behind.
        seed: of the run.
        even: take clips of all lengths in turn, so that parts of the stream that are equally long hold equally many
            tokens.
    """
    passes = range(first // table.clips, -(-last // table.clips)) if last > first else range(0)
    parts = [
        _visits_of_pass(
            table,
            places=np.arange(max(first - number * table.clips, 0), min(last - number * table.clips, table.clips)),
            seed=seed,
            number=number,
            even=even,
        )
        for number in passes
    ]
    if not parts:
        parts = [_visits_of_pass(table, places=np.arange(0), seed=seed, number=0, even=False)]
    sizes = np.concatenate([np.diff(part.item_start) for part in parts])
    return Visits(
        item_start=np.concatenate([[0], np.cumsum(sizes)]),
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("clip", "clip_rows", "item", "item_rows", "modality", "seed")
        },
    )


def _visits_of_pass(table: SourceTable, *, places: Ints, seed: int, number: int, even: bool) -> Visits:
    """Return the visits at these places of a pass; what a clip gives does not depend on its place."""
    key = (seed, table.name, number)
    clip = _evenly(table, places, *key) if even else permutation(table.clips, *key, "order")[places]
    rows = table.take_clips(clip)
    starts, counts = rows["item_start"], rows["item_count"].astype(np.int64)
    item, visit = ragged(starts, counts), np.repeat(np.arange(len(clip)), counts)
    item_rows, limit = table.take_items(item), table.settings.items_per_clip
    if limit:
        lots = uniforms_at(item, table.items, *key, "items")
        kept = _smallest(-np.log(lots) / item_rows["weight"], group=visit, counts=counts, limit=limit)
        item, visit, item_rows = item[kept], visit[kept], item_rows[kept]
    return Visits(
        clip=clip,
        clip_rows=rows,
        item_start=np.concatenate([[0], np.cumsum(np.bincount(visit, minlength=len(clip)))]),
        item=item,
        item_rows=item_rows,
        modality=_modality(table, rows, uniforms_at(clip, table.clips, *key, "modality")),
        seed=(words_at(clip, table.clips, *key, "frames") >> np.uint64(1)).astype(np.int64),
    )


def _evenly(table: SourceTable, places: Ints, *key: object) -> Ints:
    """Return the clips at these places of an order in which every run of STRATA clips has one of each length class."""
    clips = table.clips
    whole, rest = divmod(clips, STRATA)  # the first `rest` classes have one clip more, which stand in the last round
    turn, slot = places // STRATA, places % STRATA
    stratum = shuffled(slot, np.where(turn < whole, STRATA, max(rest, 1)), *key, "strata", tweak=turn)
    size = whole + (stratum < rest)
    member = shuffled(turn, size, *key, "order", tweak=stratum)
    return table.take_by_tokens(stratum * whole + np.minimum(stratum, rest) + member)


def choose_items(table: SourceTable, uniform: npt.NDArray[np.float64], *, count: int) -> Ints:
    """Return (N,) items: up to `count` of each clip, drawn by weight without replacement, sorted; count 0 chooses all.

    The smallest of exponential variates with the items' rates are such a draw (Efraimidis and Spirakis, 2006).
    """
    if count == 0:
        return np.arange(table.items)
    counts = table.clip_rows["item_count"].astype(np.int64)
    return _smallest(-np.log(uniform) / table.item_weight, group=table.item_clip, counts=counts, limit=count)


def _smallest(values: npt.NDArray[np.float64], *, group: Ints, counts: Ints, limit: int) -> Ints:
    """Places of the `limit` smallest values of each group, ascending; groups stand together, with so many values."""
    order = np.lexsort((values, group))
    rank = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < limit])


def _modality(table: SourceTable, rows: np.ndarray, uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """Return (V,) what a visit of each clip shows. Only clips with picture and sound can lose one."""
    settings = table.settings
    shown = np.full(len(rows), MODALITY_NAMES.index(settings.modality), dtype=np.int8)
    if settings.modality == "both":
        shown[uniform < settings.drop_video + settings.drop_audio] = VIDEO
        shown[uniform < settings.drop_video] = AUDIO
    shown[~rows["both"]] = BOTH
    return shown
