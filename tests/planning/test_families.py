from __future__ import annotations

import numpy as np
import pytest

from arcvideo.planning.families import Families, cut_families
from arcvideo.planning.pack import best_fit
from arcvideo.planning.settings import SourceSettings
from arcvideo.planning.shares import with_passes
from arcvideo.planning.table import CLIP_ROW, ITEM_ROW, SourceTable
from arcvideo.planning.visits import draw_visits


def table(*clips: list[int], media: int = 0, groups: list[int] | None = None, **settings: object) -> SourceTable:
    """Clips by the branches of their items; with `media`, each begins with so many tokens of a clip."""
    counts = np.array([len(branches) for branches in clips])
    rows, items = np.zeros(len(clips), dtype=CLIP_ROW), np.zeros(counts.sum(), dtype=ITEM_ROW)
    rows["item_start"], rows["item_count"], rows["media_tokens"] = np.cumsum(counts) - counts, counts, media
    items["branch"], items["weight"] = np.concatenate(clips), 1.0
    items["group"] = 0 if groups is None else groups
    return SourceTable(
        name=str(settings.pop("name", "t")), settings=SourceSettings(items_per_clip=0, **settings),  # type: ignore[arg-type]
        indexes=(), clip_rows=rows, item_rows=items, tasks=("qa",), quarantined=(), dropped=0, shortened=0, passes=1.0,
    )  # fmt: skip


def families(made: SourceTable, *, budget: int) -> Families:
    return cut_families(draw_visits(made, seed=0, epoch=0), source=0, budget=budget)


def parts(found: Families) -> set[tuple[tuple[int, ...], int, int]]:
    """Items, prefix and tokens of each family."""
    rows = (found.family(number) for number in range(len(found.clip)))
    return {(row.items, int(prefix), row.tokens) for row, prefix in zip(rows, found.prefix, strict=True)}


def test_items_without_a_clip_share_nothing_and_stand_alone() -> None:
    assert parts(families(table([5, 7, 9], [3]), budget=100)) == {
        ((0,), 0, 5), ((1,), 0, 7), ((2,), 0, 9), ((3,), 0, 3),
    }  # fmt: skip


def test_items_of_a_clip_share_its_prefix_by_the_text_before_it() -> None:
    found = families(table([5, 7, 9], media=40, groups=[0, 1, 0]), budget=100)
    assert parts(found) == {((0, 2), 41, 55), ((1,), 41, 48)}


def test_families_over_the_budget_are_cut_and_each_part_has_the_prefix() -> None:
    found = families(table([10, 10, 10, 10, 10], [10], media=40), budget=65)
    assert parts(found) == {((0, 1), 41, 61), ((2, 3), 41, 61), ((4,), 41, 51), ((5,), 41, 51)}
    assert found.tokens.max() <= 65


def test_a_family_goes_into_the_fullest_pack_that_has_room() -> None:
    assert best_fit(np.array([70, 60, 30]), budget=100) == [[0, 2], [1]]
    assert best_fit(np.array([60, 70, 30, 40]), budget=100) == [[1, 2], [0, 3]]


@pytest.mark.parametrize("weight", [1.2, 1.5, 1.9, 3.0, 30.0])
def test_a_source_reaches_its_limit_of_passes_as_soon_as_it_would_exceed_it(weight: float) -> None:
    """Two sources of equal size: a share of w / (w + 1) of their tokens is 2 w / (w + 1) passes, at most two."""
    first, second = table([10] * 4, name="a", weight=weight, repeat=1.0), table([10] * 4, name="b")
    assert [made.passes for made in with_passes([first, second], unit="tokens")] == pytest.approx([1.0, 1.0])
    freer = table([10] * 4, name="a", weight=weight, repeat=2.0)
    passes = [made.passes for made in with_passes([freer, second], unit="tokens")]
    assert passes == pytest.approx([2 * weight / (weight + 1), 2 / (weight + 1)])
