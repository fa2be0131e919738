from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcvideo.feed.source import Source
from arcvideo.planning import mixture
from arcvideo.planning import plan as plan_module
from arcvideo.planning.plan import Plan
from arcvideo.planning.random_words import permutation, words
from arcvideo.planning.settings import DataSettings, QuarantineSettings, SourceSettings
from arcvideo.planning.shares import realised
from arcvideo.planning.table import ITEM_ROW, LargestFirst, SourceTable, largest_first
from arcvideo.planning.visits import visits_at
from arcvideo.shards.write import Record, write_shards
from benchmarks.plan import synthetic
from tests.data.build import LAYOUT, tokenizer

BUDGET = 32_768


def several_items(clips: int, *, name: str = "many", passes: float = 1.0, **settings: object) -> SourceTable:
    """The synthetic clips with one to five items each."""
    table = synthetic(clips)
    counts = 1 + np.arange(clips) % 5
    rows, items = table.clip_rows.copy(), np.zeros(counts.sum(), dtype=ITEM_ROW)
    rows["item_start"], rows["item_count"] = np.cumsum(counts) - counts, counts
    items["weight"], items["before"], items["branch"] = 1.0, 30, 40 + np.arange(len(items)) * 7919 % 400
    return dataclasses.replace(
        table, name=name, clip_rows=rows, item_rows=items, passes=passes,
        settings=SourceSettings(**settings),  # type: ignore[arg-type]
    )  # fmt: skip


def planned(*tables: SourceTable, packs: int = 8, window: int = 2000, seed: int = 3) -> Plan:
    return Plan(tables, seed=seed, token_budget=BUDGET, packs_per_step=packs, window=window)


def items_of(plan: Plan, epoch: int) -> Counter[tuple[int, int]]:
    whole = plan.epoch(epoch)
    families = chain.from_iterable(whole.pack(number) for number in range(whole.packs))
    return Counter((family.source, item) for family in families for item in family.items)


def test_windows_show_every_item_as_often_as_a_whole_epoch() -> None:
    table, small = several_items(9000, items_per_clip=0), several_items(70, name="few", passes=40, items_per_clip=0)
    plan = planned(table, small)
    assert plan.windows > 3
    counted = items_of(plan, 1)
    assert {count for (source, _), count in counted.items() if source == 0} == {1}
    assert {count for (source, _), count in counted.items() if source == 1} == {40}
    assert len(counted) == table.items + small.items


def test_half_a_pass_shows_every_clip_once_in_two_epochs() -> None:
    plan = planned(several_items(16_000, passes=0.5, items_per_clip=0))
    assert plan.windows > 2
    assert set((items_of(plan, 0) + items_of(plan, 1)).values()) == {1}


def test_any_step_of_any_epoch_needs_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [several_items(9000, items_per_clip=2)]
    straight = planned(*tables)
    steps = [straight.step(step) for step in range(straight.first_step(2))]
    made: list[object] = []
    real = plan_module.plan_window

    def counted(*arguments: object, **options: object) -> object:
        made.append(arguments[2:])
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(plan_module, "plan_window", counted)
    for step in (0, 1, len(steps) // 3, len(steps) // 2 - 1, len(steps) // 2, len(steps) - 1):
        fresh = planned(*tables)
        made.clear()
        assert fresh.step(step) == steps[step]
        assert len(made) == 2  # an epoch's last window, whose steps are counted, and the one that is asked for
    assert straight.step(0) != planned(*tables, seed=4).step(0)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_the_packs_of_a_step_in_turn(world: int) -> None:
    plan = planned(several_items(9000))
    for step in (0, plan.first_step(1) - 1, plan.first_step(1)):
        shares = [planned(*plan.tables).step(step, rank=rank, world=world) for rank in range(world)]
        whole = plan.step(step)
        assert [shares[number % world][number // world] for number in range(len(whole))] == whole


@pytest.mark.parametrize("packs", [8, 64])
def test_windows_are_full_and_alike(packs: int) -> None:
    plan = planned(synthetic(60_000), packs=packs, window=20_000)
    windows = [plan.window(epoch, number) for epoch in range(2) for number in range(plan.windows)]
    assert len(windows) > 4
    for window in windows:
        # What is left empty beside the packs' own half percent is one step: the last is filled by halving packs.
        assert window.tokens / (window.packs * BUDGET) >= 0.995 - packs / window.packs
        # A clip's tokens vary by 1.3 of their mean, those of 20,000 by 1 %: three times that are steps not foreseen.
        sizes = np.diff(window.step_start)
        assert set(sizes) <= {packs, 2 * packs}
        assert (sizes == 2 * packs).mean() <= 0.03


def test_a_window_that_needs_more_packs_has_steps_of_twice_as_many() -> None:
    plan = planned(several_items(9000, items_per_clip=0))
    cut = plan._cut
    assert cut is not None
    tight = planned(*plan.tables)
    tight.__dict__["_cut"] = dataclasses.replace(cut, steps=cut.steps - 3)
    window = tight.window(0, 0)
    assert window.steps == cut.steps - 3
    assert sorted(set(np.diff(window.step_start).tolist())) == [8, 16]
    assert set(items_of(tight, 0).values()) == {1}
    assert len(items_of(tight, 0)) == plan.tables[0].items
    doubled = int(np.argmax(np.diff(window.step_start)))
    assert [len(tight.step(doubled, rank=rank, world=4)) for rank in range(4)] == [4] * 4


def test_the_next_window_and_the_next_epoch_are_planned_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(several_items(9000))
    epoch = plan.first_step(1)
    real, names = plan_module.plan_window, []

    def noted(*arguments: object, **options: object) -> object:
        names.append(threading.current_thread().name)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(plan_module, "plan_window", noted)
    with ThreadPoolExecutor(1, "plan") as pool:
        for step in range(epoch + 1):
            plan.step(step)
            plan.prepare(step, pool.submit)
    assert names[0] == threading.main_thread().name
    assert len(names) == plan.windows + 2
    assert all(name.startswith("plan") for name in names[1:])


def test_realised_counts_follow_the_windows() -> None:
    plan = planned(several_items(9000))
    steps = plan.first_step(1) + 5
    families = [family for step in range(steps) for pack in plan.step(step) for family in pack]
    row = realised(plan, steps=steps)["many"]
    assert (row["families"], row["tokens"]) == (len(families), sum(family.tokens for family in families))


def test_small_passes_are_drawn_as_one_by_one() -> None:
    table = several_items(7, items_per_clip=2)
    whole = visits_at(table, first=0, last=70, seed=1)
    parts = [visits_at(table, first=first, last=first + 5, seed=1) for first in range(0, 70, 5)]
    for name in ("clip", "item", "modality", "seed"):
        assert (np.concatenate([getattr(part, name) for part in parts]) == getattr(whole, name)).all()
    assert Counter(whole.clip.tolist()) == dict.fromkeys(range(7), 10)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("text")
    item = [{"task": "caption", "answer": "red"}, {"task": "asr", "answer": "blue"}, {"task": "asr", "answer": 3}]
    records = (Record(key=f"r{n:03d}", content={"items": item[: 1 + n % 3]}, media={}) for n in range(50))
    write_shards(records, out=folder, per_shard=12)
    return str(folder / "*.tar")


def opened(pattern: str, **source: object) -> SourceTable:
    settings = DataSettings(sources={"a": SourceSettings(shards=pattern, **source)}, wording="brief")  # type: ignore[arg-type]
    (table,) = mixture.open_mixture(settings, layout=LAYOUT, tokenizer=tokenizer(), progress=False)
    return table


def test_a_stored_table_says_what_the_one_in_memory_says(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = opened(pattern, items_per_clip=1)
    monkeypatch.setattr(mixture, "STORED_ITEMS", 10)
    made, again = opened(pattern, items_per_clip=1), opened(pattern, items_per_clip=1)
    for table in (made, again):
        assert table.maps
        assert (table.clip_rows == held.clip_rows).all()
        assert (table.item_rows == held.item_rows).all()
        assert (table.tasks, table.dropped, table.shortened) == (held.tasks, held.dropped, held.shortened)
        assert table.quarantined == held.quarantined
        assert len(held.quarantined) == 16
        assert mixture.index_digest([table]) == mixture.index_digest([held])
        assert [table.key(clip) for clip in range(table.clips)] == [held.key(clip) for clip in range(held.clips)]
    assert opened(pattern, items_per_clip=1, tasks={"asr": 1.0}).tasks == held.tasks
    assert opened(pattern, items_per_clip=1, tasks={"asr": 1.0}).items < held.items


def test_a_stored_table_is_opened_without_opening_a_shard(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "STORED_ITEMS", 10)
    held = opened(pattern)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a shard was opened")

    monkeypatch.setattr(mixture, "ensure_indexes", refuse)
    monkeypatch.setattr(mixture, "all_lengths", refuse)
    assert (opened(pattern).clip_rows == held.clip_rows).all()


def test_where_nothing_is_left_to_share_one_process_opens_the_shards(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(pattern)  # indexes and counts are there
    monkeypatch.setattr(mixture, "STORED_ITEMS", 0)
    monkeypatch.setattr(mixture, "STORED_SHARDS", 1)
    real, asked = mixture.ensure_indexes, []

    def counted(*arguments: object, **options: object) -> object:
        asked.append(arguments)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mixture, "ensure_indexes", counted)
    with ThreadPoolExecutor(4) as ranks:
        tables = list(ranks.map(lambda _: opened(pattern, tags=[], items_per_clip=3), range(4)))
    assert len(asked) == 1
    assert all((table.item_rows == tables[0].item_rows).all() for table in tables)


def test_rows_of_a_map_are_read_a_few_at_a_time_and_those_that_lie_together_at_once() -> None:
    """However large the pages of the page cache are, what they bring into a process before it lets go stays a small
    part of the table."""
    table = synthetic(200_000)
    spans: list[int] = []

    class Rows(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, numbers: Any) -> Any:
            spans.append(int(np.max(numbers)) - int(np.min(numbers)))
            return np.asarray(self)[numbers]

    class Pages:
        def madvise(self, _: int) -> None:
            spans.append(-1)

    mapped = dataclasses.replace(table, clip_rows=table.clip_rows.view(Rows), maps=(Pages(),))  # type: ignore[arg-type]
    for count in (1, 20_000):
        clips = permutation(200_000, count)[:count]
        assert (mapped.take_clips(clips) == table.take_clips(clips)).all()
        assert spans[-1] == -1  # nothing is kept
    assert spans.count(-1) == len(spans) / 2
    assert max(spans) < 200_000 / 20


def test_places_sorted_in_pieces_are_those_sorted_at_once() -> None:
    numbers = words(5000, "tokens").astype(np.int64) % 300
    numbers[[7, 4000]] = 1 << 40  # alike to all that are very large
    numbers[8] = (1 << 20) + 5
    for held in (1, 64, 10_000):
        pieces = LargestFirst()
        for part in np.split(numbers, [0, 3, 4500]):
            pieces.add(part)
        assert pieces.order(held=held).tolist() == largest_first(numbers).tolist()
    assert largest_first(numbers)[:3].tolist() == [7, 8, 4000]


def test_a_damaged_or_outdated_table_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "STORED_ITEMS", 3)

    def write(answer: str) -> None:
        item = {"task": "caption", "answer": answer}
        records = (Record(key=f"r{n}", content={"items": [item]}, media={}) for n in range(9))
        write_shards(records, out=tmp_path)

    write("red")
    first = opened(str(tmp_path / "*.tar")).item_rows.copy()  # it maps the file that is damaged
    (rows,) = tmp_path.glob(".tables/*/items.rows")
    data = rows.read_bytes()
    rows.write_bytes(data[:20] + bytes([data[20] ^ 4]) + data[21:])
    assert (opened(str(tmp_path / "*.tar")).item_rows == first).all()
    write("red red red")
    assert (opened(str(tmp_path / "*.tar")).item_rows["branch"] > first["branch"].max()).all()


def test_batches_of_a_stored_table_are_those_of_one_in_memory(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> list[tuple[str, ...]]:
        sources, bad = {"a": SourceSettings(shards=pattern)}, QuarantineSettings(max_rate=0.5)
        settings = DataSettings(sources=sources, wording="brief", token_budget=128, quarantine=bad)
        source = Source(settings, layout=LAYOUT, tokenizer=tokenizer(), seed=2)
        found = [batch.keys for step in range(source.steps_per_epoch) for batch in source.batches(step).batches]
        source.close()
        return found

    held = keys()
    monkeypatch.setattr(mixture, "STORED_ITEMS", 10)
    assert keys() == held
