"""A key names one clip of a source, wherever its second record lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arcvideo.data.shards import main
from arcvideo.feed.quarantine import QuarantineBudgetError
from arcvideo.feed.source import Source
from arcvideo.planning.mixture import open_mixture
from arcvideo.planning.random_words import words
from arcvideo.planning.repeated import key_numbers, met_twice, repeated_keys
from arcvideo.planning.settings import QuarantineSettings
from arcvideo.shards.index import ensure_indexes
from arcvideo.shards.write import Record, write_shards
from tests.data import build


def shard(folder: Path, *keys: str) -> Path:
    content = {"items": [{"task": "caption", "answer": f"in {folder.name}"}]}
    return write_shards((Record(key=key, content=content, media={}) for key in keys), out=folder)[0]


def pattern(folder: Path, *shards: tuple[str, ...]) -> str:
    for number, keys in enumerate(shards):
        shard(folder / f"{number}", *keys)
    return f"{folder}/*/shard-*.tar"


def test_first_record_of_a_key_is_used_and_the_others_are_listed(tmp_path: Path) -> None:
    shards = pattern(tmp_path, ("a", "bb", "ab"), ("ba", "bb", "c" * 300), ("bb", "d/a", "ab", "a" * 299))
    (table,) = open_mixture(build.settings(shards), layout=build.LAYOUT, tokenizer=build.tokenizer(), progress=False)
    used = [table.key(clip) for clip in range(table.clips)]
    assert used == ["a", "bb", "ab", "ba", "c" * 300, "d/a", "a" * 299]
    assert [table.clip_shard[used.index(key)] for key in ("bb", "ab", "d/a")] == [0, 0, 2]
    assert [(problem.key, problem.reason) for problem in table.quarantined] == [
        ("bb", "duplicate_key"),
        ("bb", "duplicate_key"),
        ("ab", "duplicate_key"),
    ]


def test_shards_that_number_their_records_alike_stop_at_the_budget(tmp_path: Path) -> None:
    settings = build.settings(pattern(tmp_path, ("0", "1"), ("0", "1")), quarantine=QuarantineSettings(max_rate=0.4))
    with pytest.raises(QuarantineBudgetError, match=r"2 x duplicate_key.*keys must be unique in a source"):
        Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=0)


def test_shards_without_clips_have_no_keys(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(bytes(1024))
    indexes = ensure_indexes([tmp_path / "x.tar", shard(tmp_path / "y", "a")], progress=False)
    assert not repeated_keys(indexes).problems


def test_verify_finds_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", pattern(tmp_path, ("a",), ("a",))]) == 1
    assert "duplicate_key" in capsys.readouterr().out


def test_more_numbers_than_are_held_at_once_are_told_apart_all_the_same() -> None:
    numbers = words(5000, "some")
    numbers[::7] = numbers[1::7][: len(numbers[::7])]
    parts = np.split(numbers, [10, 10, 900, 2400])
    alone, counts = np.unique(numbers, return_counts=True)
    for held in (64, 1000, 10_000):
        assert met_twice(iter(parts), count=len(numbers), held=held).tolist() == alone[counts > 1].tolist()
    assert not len(met_twice(iter([]), count=0))


def test_keys_of_equal_and_of_unequal_lengths_have_the_same_numbers(tmp_path: Path) -> None:
    (equal,) = ensure_indexes([shard(tmp_path / "x", "ab", "cd", "ef")], progress=False)
    (unequal,) = ensure_indexes([shard(tmp_path / "y", "ab", "c", "ef")], progress=False)
    assert key_numbers(equal)[[0, 2]].tolist() == key_numbers(unequal)[[0, 2]].tolist()
