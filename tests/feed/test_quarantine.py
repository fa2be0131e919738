"""One file for all ranks: rows stand once, everybody's count, and a stopped run's rows are taken over."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from arcvideo.feed.quarantine import Quarantine, QuarantineBudgetError
from arcvideo.planning.mixture import open_mixture
from arcvideo.planning.settings import QuarantineSettings
from arcvideo.planning.table import SourceTable
from arcvideo.shards.members import Problem
from arcvideo.shards.write import Record, write_shards
from tests.data import build

ITEMS = [{"task": "caption", "answer": "red"}, {"task": "qa", "question": "what?"}]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[SourceTable]:
    """Ten good items and ten that the index refuses."""
    folder = tmp_path_factory.mktemp("text")
    write_shards((Record(key=f"r{n}", content={"items": ITEMS}, media={}) for n in range(10)), out=folder)
    settings = build.settings(str(folder / "*.tar"))
    return open_mixture(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), progress=False)


def opened(tables: list[SourceTable], file: Path, *, max_count: int = 100) -> Quarantine:
    return Quarantine(tables, settings=QuarantineSettings(max_rate=1.0, max_count=max_count), file=file)


def timeout(key: str) -> Problem:
    return Problem(key=key, stage="media", reason="timeout", shard="shard-000000.tar")


def test_ranks_share_one_file_in_which_each_row_stands_once(tables: list[SourceTable], tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    ranks = [opened(tables, file) for _ in range(4)]
    for number, rank in enumerate(ranks):
        rank.add("tiny", timeout(f"r{number}"))
        rank.add("tiny", timeout("r9"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == len({row["key"] + row["reason"] for row in rows}) == 10 + 5
    assert [rank.count("tiny") for rank in ranks] == [15] * 4
    assert ranks[0].reasons("tiny") == {"no_answer": 10, "timeout": 5}


def test_budget_counts_what_all_ranks_met(tables: list[SourceTable], tmp_path: Path) -> None:
    one, other = (opened(tables, tmp_path / "quarantine.jsonl", max_count=12) for _ in range(2))
    one.add("tiny", timeout("r0"))
    other.add("tiny", timeout("r1"))
    with pytest.raises(QuarantineBudgetError, match="13 quarantined"):
        one.add("tiny", timeout("r2"))


def test_another_number_of_ranks_skips_the_same_after_a_restart(tables: list[SourceTable], tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    for number, rank in enumerate([opened(tables, file) for _ in range(2)]):
        rank.add("tiny", timeout(f"r{number}"))
        assert not rank.unreadable("tiny", f"r{1 - number}")  # its own data do not hang on who was faster
    alone = opened(tables, file)
    assert alone.unreadable("tiny", "r0")
    assert alone.unreadable("tiny", "r1")
    assert alone.count("tiny") == 12


def test_row_that_a_stop_cut_short_harms_no_other(tables: list[SourceTable], tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    opened(tables, file).add("tiny", timeout("r0"))
    file.write_bytes(file.read_bytes()[:-20])
    again = opened(tables, file)
    again.add("tiny", timeout("r1"))
    assert opened(tables, file).unreadable("tiny", "r1")
    assert not opened(tables, file).unreadable("tiny", "r0")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[SourceTable]:
    """Three good items and none that is refused."""
    folder = tmp_path_factory.mktemp("good")
    write_shards((Record(key=f"r{n}", content={"items": ITEMS[:1]}, media={}) for n in range(3)), out=folder)
    settings = build.settings(str(folder / "*.tar"))
    return open_mixture(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), progress=False)


def test_one_bad_sample_is_no_rate_and_two_are(good: list[SourceTable], tmp_path: Path) -> None:
    books = Quarantine(good, settings=QuarantineSettings(max_rate=0.05), file=tmp_path / "quarantine.jsonl")
    books.add("tiny", timeout("r0"))
    books.add("tiny", timeout("r0"))  # the same once more
    assert books.count("tiny") == 1
    with pytest.raises(QuarantineBudgetError, match="2 quarantined"):
        books.add("tiny", timeout("r1"))


def test_problems_of_one_key_are_told_apart_by_shard_reason_and_detail(good: list[SourceTable], tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    books = Quarantine(good, settings=QuarantineSettings(max_rate=1.0), file=file)
    first = timeout("r0")
    others = [
        dataclasses.replace(first, **change)
        for change in ({"shard": "shard-000001.tar"}, {"reason": "corrupt"}, {"detail": "after 2 s"}, {"key": "r1"})
    ]
    for problem in [first, *others, *others]:
        books.add("tiny", problem)
    assert books.count("tiny") == 5
    assert len(file.read_text().splitlines()) == 5
    assert Quarantine(good, settings=QuarantineSettings(max_rate=1.0), file=file).count("tiny") == 5
