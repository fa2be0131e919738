"""Work on shards is divided among processes and done once."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from arcvideo.shards.index import ensure_indexes
from arcvideo.shards.lengths import all_lengths
from arcvideo.shards.locks import in_turns, locked
from tests.data import build

WORKER = """
import sys, time
from pathlib import Path
from arcvideo.shards.locks import in_turns

def work(shard):
    with open(shard.with_suffix(".log"), "a") as file:
        file.write(sys.argv[1])
    time.sleep(0.05)
    shard.with_suffix(".done").touch()

shards = [Path(name) for name in sys.argv[2:]]
in_turns(shards, done=lambda shard: shard.with_suffix(".done").exists(), work=work, advance=lambda count: None,
         lock=lambda shard: shard.with_suffix(".lock"))
assert all(shard.with_suffix(".done").exists() for shard in shards)
"""


def test_processes_divide_the_shards_and_none_is_done_twice(tmp_path: Path) -> None:
    shards = [str(tmp_path / f"{number}.tar") for number in range(8)]
    started = [subprocess.Popen([sys.executable, "-c", WORKER, name, *shards]) for name in "ab"]
    assert [process.wait() for process in started] == [0, 0]
    assert all(len(Path(shard).with_suffix(".log").read_text()) == 1 for shard in shards)


def test_a_shard_that_another_process_holds_is_done_last(tmp_path: Path) -> None:
    held, free = tmp_path / "held.tar", tmp_path / "free.tar"
    finished: list[Path] = []
    with ExitStack() as other:
        assert other.enter_context(locked(held.with_suffix(".lock")))

        def work(shard: Path) -> None:
            finished.append(shard)
            other.close()  # meanwhile the other process has finished its shard

        in_turns(
            [held, free],
            done=lambda shard: shard == held,
            work=work,
            advance=lambda count: None,
            lock=lambda shard: shard.with_suffix(".lock"),
        )
    assert finished == [free]


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("")
    with (
        pytest.raises(ValueError, match=r"none/x\.lock: cannot be written.*data\.index_dir"),
        locked(tmp_path / "none" / "x.lock"),
    ):
        raise AssertionError


def test_token_counts_of_a_tokenizer_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.shards(tmp_path, count=4, per_shard=2)
    indexes = ensure_indexes(sorted(tmp_path.glob("*.tar")), progress=False)
    first = all_lengths(indexes, tokenizer=build.tokenizer(), style="plain", wording="brief", progress=False)
    monkeypatch.setattr("arcvideo.shards.lengths._count", lambda *args, **kwargs: pytest.fail("counted again"))
    again = all_lengths(indexes, tokenizer=build.tokenizer(), style="plain", wording="brief", progress=False)
    assert all((one.rows == other.rows).all() for one, other in zip(first, again, strict=True))
