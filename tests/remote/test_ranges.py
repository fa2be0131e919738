"""Shards read by ranges: what they give, what is asked for, and what a server's faults come to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arcvideo.feed.source import Source
from arcvideo.remote.held import Held
from arcvideo.remote.links import read_link
from arcvideo.remote.patience import Ended
from arcvideo.remote.reading import confirm, forget, halt, opened_stream, read_range
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.shards import ShardCache
from arcvideo.seals import sidecar
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ensure_indexes, open_index
from arcvideo.shards.members import read_at, read_groups
from tests.data import build
from tests.remote.server import Fault, Served, busy, cut, drip, serving, stall

NAMES = [f"shard-{number:06d}.tar" for number in range(3)]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    build.shards(tmp_path / "served", count=9, per_shard=3)
    with serving(tmp_path / "served") as found:
        yield found


def cache(tmp_path: Path, **changes: Any) -> ShardCacheSettings:
    return ShardCacheSettings(path=str(tmp_path / "cache"), **{"stall_seconds": 0.5, "retries": 2, **changes})


def opened(served: Served, tmp_path: Path, name: str = NAMES[0], **changes: Any) -> Path:
    return ShardCache(cache(tmp_path, **changes)).fetch(f"{served.address}/{name}")


def same(left: Any, right: Any) -> bool:
    """Return whether two values hold the same bits, whatever they are made of."""
    if isinstance(left, torch.Tensor):
        return bool(left.dtype == right.dtype and torch.equal(left, right))
    if isinstance(left, np.ndarray):
        return bool(np.array_equal(left, right))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if hasattr(left, "__dict__"):
        return same(list(vars(left).items()), list(vars(right).items()))
    return bool(left == right)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_a_url_gives_the_bits_of_the_local_shards(served: Served, tmp_path: Path, workers: int) -> None:
    pattern = "shard-{000000..000002}.tar"
    about: dict[str, Any] = {"layout": build.LAYOUT, "tokenizer": build.tokenizer(), "seed": 3}
    local = Source(build.settings(f"{served.folder}/{pattern}", workers=workers), **about)
    settings = build.settings(f"{served.address}/{pattern}", workers=workers, shard_cache=cache(tmp_path))
    remote = Source(settings, **about)
    assert remote.digest == local.digest
    for step in range(4):
        assert same(remote.batches(step), local.batches(step))
    local.close()
    remote.close()


def test_an_index_takes_one_pass_and_leaves_nothing_of_the_shard(served: Served, tmp_path: Path) -> None:
    path = opened(served, tmp_path)
    (index,) = ensure_indexes([path], progress=False)
    size = (served.folder / NAMES[0]).stat().st_size
    parts = [(start, end) for _, start, end in served.asked if (start, end) != (0, 512)]
    assert parts == [(0, size)]
    kept = [one for one in (tmp_path / "cache").rglob("*") if one.is_file() and ".index" not in str(one)]
    assert sum(one.stat().st_size for one in kept) < 2000
    (local,) = ensure_indexes([served.folder / NAMES[0]], progress=False)
    assert index.digest == local.digest
    assert [index.record(row) for row in range(3)] == [local.record(row) for row in range(3)]
    assert len(served.asked) == len(parts) + 2  # looked at before and after; records are read from the index


@pytest.mark.parametrize("damage", ["hole", "cut", "joined", "zeros", "scattered"])
def test_a_damaged_shard_has_the_same_index_there_as_here(served: Served, tmp_path: Path, damage: str) -> None:
    data = (served.folder / NAMES[0]).read_bytes()
    other = (served.folder / NAMES[1]).read_bytes()
    changed = {
        "hole": data[:512] + b"x" * 1024 + data[1536:],
        "cut": data[: len(data) // 2],
        "joined": data + other,
        "zeros": data[:2048] + bytes(4096) + data[6144:],
        "scattered": other[: len(other) - 10240] + data,
    }[damage]
    (served.folder / NAMES[0]).write_bytes(changed)
    sidecar(served.folder / NAMES[0]).unlink()  # no server is asked for the digest beside a shard
    (here,) = ensure_indexes([served.folder / NAMES[0]], progress=False)
    (there,) = ensure_indexes([opened(served, tmp_path)], progress=False)
    assert there.digest == here.digest
    rows = [[(one.stage, one.reason, one.detail) for one in index.problems()] for index in (here, there)]
    assert rows[0] == rows[1]


def test_ranges_after_one_another_come_over_one_connection(served: Served, tmp_path: Path) -> None:
    path = opened(served, tmp_path)
    before = served.connections
    link = read_link(path)
    assert link is not None
    for number in range(6):
        read_range(path, link, offset=512 * number, size=512)
    assert len({start for _, start, _ in served.asked}) == 6
    assert served.connections - before <= 1


def test_members_are_read_ahead_several_at_a_time_and_kept_for_the_next_epoch(served: Served, tmp_path: Path) -> None:
    settings = build.settings(
        f"{served.address}/shard-{{000000..000002}}.tar", workers=1, prefetch_steps=4, shard_cache=cache(tmp_path)
    )
    source = Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=0)
    served.seconds, served.most_at_once = 0.05, 0
    before = len(served.asked)
    steps = source.steps_per_epoch
    for step in range(steps):
        source.batches(step)
    asked = served.asked[before:]
    assert served.most_at_once > 1
    assert len(asked) == len(set(asked))
    members = {
        (path.name, offset, offset + size)
        for path in sorted(served.folder.glob("*.tar"))
        for index in ensure_indexes([path], progress=False)
        for row in range(len(index.clips))
        for offset, size in index.spans(row)
    }
    assert set(asked) <= members
    for step in range(steps, 2 * steps):
        source.batches(step)
    assert len(set(served.asked[before:])) == len(served.asked[before:])
    source.close()


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ([cut], "ended early"), ([busy], "HTTP 503"), ([stall], "stalled"), ([drip], "ended early|stalled"),
        ([busy, cut], "again in 2 s"),
    ],
)  # fmt: skip
def test_a_fault_that_passes_costs_a_told_retry_and_no_sample(
    served: Served, tmp_path: Path, faults: list[Fault], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = opened(served, tmp_path)
    served.faults += faults
    (index,) = ensure_indexes([path], progress=False)
    assert served.faults == []
    served.faults += faults
    data = [index.media_bytes(row) for row in range(3)]
    (local,) = ensure_indexes([served.folder / NAMES[0]], progress=False)
    assert (index.digest, data) == (local.digest, [local.media_bytes(row) for row in range(3)])
    lines = capsys.readouterr().err
    assert lines.count("again in 1 s") == 2
    assert re.search(told, lines)


def test_a_fault_that_stays_ends_after_its_tries_and_says_what_to_do(served: Served, tmp_path: Path) -> None:
    (index,) = ensure_indexes([opened(served, tmp_path, retries=1)], progress=False)
    served.faults += [busy] * 2
    with pytest.raises(ValueError, match=rf"{served.address}/{NAMES[0]}: cannot be read: .*503.*2 tries"):
        index.media_bytes(0)


def test_a_deadline_ends_the_tries(served: Served, tmp_path: Path) -> None:
    (index,) = ensure_indexes([opened(served, tmp_path, retries=50, deadline_seconds=2.0)], progress=False)
    served.faults += [busy] * 50
    with pytest.raises(ValueError, match=r"503.*2 tries"):
        index.media_bytes(0)


def test_a_file_that_is_not_there_is_refused_at_once(served: Served, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.tar: cannot be read: .*404.*no such file"):
        expand_shards(f"{served.address}/missing.tar", cache=cache(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("etags", [True, False])
def test_a_shard_that_changed_is_never_read_as_what_it_was(served: Served, tmp_path: Path, etags: bool) -> None:
    served.etags = etags
    pattern = f"{served.address}/{NAMES[0]}"
    settings = build.settings(pattern, workers=1, shard_cache=cache(tmp_path))
    source = Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=0)
    digest = source.digest
    shutil.copy(served.folder / NAMES[1], served.folder / NAMES[0])
    if not etags:  # without them a change of size must do
        with open(served.folder / NAMES[0], "ab") as file:
            file.write(bytes(10240))
    with pytest.raises(ValueError, match=rf"{pattern}: changed since it was indexed \(.* was .*start again"):
        list(map(source.batches, range(3)))
    source.close()
    again = Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=0)
    assert again.digest != digest
    again.batches(0)
    again.close()


def test_every_reader_of_a_shard_that_changed_is_told_so(served: Served, tmp_path: Path) -> None:
    """Several members are read at once; the first to see the change must not leave the others without a reason."""
    path = opened(served, tmp_path)
    shutil.copy(served.folder / NAMES[1], served.folder / NAMES[0])
    for _ in range(2):
        with pytest.raises(ValueError, match="changed since it was indexed"):
            read_at(path, offset=512, size=512)
    assert opened(served, tmp_path) == path
    assert read_at(path, offset=512, size=512) == (served.folder / NAMES[0]).read_bytes()[512:1024]


def test_every_process_that_reads_a_shard_that_changed_is_told_the_same(served: Served, tmp_path: Path) -> None:
    path = opened(served, tmp_path)
    ensure_indexes([path], progress=False)
    read = "import sys; from pathlib import Path; from arcvideo.shards.members import read_at\n"
    read += "from arcvideo.remote.links import know; know(Path(sys.argv[1]), sys.argv[2])\n"
    read += "try: read_at(Path(sys.argv[1]), offset=512, size=512)\nexcept ValueError as error: print(error)"
    words = [str(path), f"{served.address}/{NAMES[0]}"]
    shutil.copy(served.folder / NAMES[1], served.folder / NAMES[0])
    first, second = (
        subprocess.run([sys.executable, "-c", read, *words], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert "changed since it was indexed" in first
    assert second == first
    with pytest.raises(ValueError, match="changed since it was indexed"):
        open_index(path)
    assert opened(served, tmp_path) == path
    assert not list(path.parent.glob("*.changed"))
    ensure_indexes([path], progress=False)


def test_a_shard_that_changes_while_it_is_indexed_is_no_index(served: Served, tmp_path: Path) -> None:
    path = opened(served, tmp_path)
    shutil.copy(served.folder / NAMES[1], served.folder / NAMES[0])
    with pytest.raises(ValueError, match="changed since it was indexed"):
        ensure_indexes([path], progress=False)
    assert not list((tmp_path / "cache").glob("*.index"))


def test_a_server_without_ranges_gives_a_whole_copy_aloud(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.ranges = False
    path = opened(served, tmp_path)
    assert "gives whole files only" in capsys.readouterr().err
    assert read_link(path) is None
    assert path.read_bytes() == (served.folder / NAMES[0]).read_bytes()


def test_what_is_kept_stays_below_its_limit_and_the_oldest_goes(tmp_path: Path) -> None:
    held = Held(tmp_path, max_bytes=100_000)
    for number in range(20):
        held.save("a", bytes([number]) * 10_000, offset=number)
        time.sleep(0.002)
        held.load("a", offset=0, size=10_000)
    files = list((tmp_path / "members").rglob("*.part"))
    assert sum(path.stat().st_size for path in files) <= 100_000
    assert held.load("a", offset=0, size=10_000) == bytes(10_000)  # used all the time
    assert held.load("a", offset=1, size=10_000) is None
    assert held.load("a", offset=19, size=10_000) == bytes([19]) * 10_000


def test_a_part_that_was_damaged_on_disk_is_read_again(served: Served, tmp_path: Path) -> None:
    (index,) = ensure_indexes([opened(served, tmp_path)], progress=False)
    first = index.media_bytes(0)
    (part,) = (tmp_path / "cache" / "members").rglob("*.part")
    part.write_bytes(bytes(part.stat().st_size))
    assert index.media_bytes(0) == first


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_costs_time_and_no_sample(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (index,) = ensure_indexes([opened(served, tmp_path)], progress=False)
    monkeypatch.setattr(Held, "_path", lambda *_, **__: Path("/dev/full/part"))
    (local,) = ensure_indexes([served.folder / NAMES[0]], progress=False)
    for _ in range(2):
        assert index.media_bytes(0) == local.media_bytes(0)
    assert capsys.readouterr().err.count("nothing more of remote shards is kept") == 1


def test_headers_alone_are_read_without_the_media_between_them(served: Served, tmp_path: Path) -> None:
    big = served.folder / "big.tar"
    with tarfile.open(big, "w") as tar:
        for number in range(3):
            content = tmp_path / f"clip-{number}.mp4"
            content.write_bytes(os.urandom(4 << 20))
            tar.add(content, arcname=content.name)
    path = opened(served, tmp_path, "big.tar")
    groups, _ = read_groups(path)
    assert [group.key for group in groups] == ["clip-0", "clip-1", "clip-2"]
    member = groups[2].members[0]
    assert read_at(path, offset=member.offset, size=member.size) == content.read_bytes()


def test_a_link_holds_no_credentials(served: Served, tmp_path: Path) -> None:
    url = f"{served.address}/{NAMES[0]}?token=planted"
    path = ShardCache(cache(tmp_path)).fetch(url)
    link = read_link(path)
    assert link is not None
    assert link.url == url
    assert b"planted" not in path.read_bytes()


def test_a_stream_can_step_back(served: Served, tmp_path: Path) -> None:
    path = opened(served, tmp_path)
    link, data = read_link(path), (served.folder / NAMES[0]).read_bytes()
    assert link is not None
    stream = opened_stream(path, link)
    for at in (0, 5000, 100, len(data) - 10, 7, len(data) + 5):
        assert stream.pread(600, at) == data[at : at + 600]
    confirm(path, link)


def test_the_end_of_a_source_interrupts_what_waits_for_its_next_try(served: Served, tmp_path: Path) -> None:
    shards = cache(tmp_path, retries=10_000, deadline_seconds=1e6)  # whoever waits for the tries waits for days
    settings = build.settings(f"{served.address}/{NAMES[0]}", workers=2, shard_cache=shards)
    source = Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=0)
    before = len(served.asked)
    served.faults += [busy] * 1000
    step = threading.Thread(target=suppressed, args=(source.batches, 0), daemon=True)
    step.start()
    while len(served.asked) < before + 2 or not source._readers:
        time.sleep(0.01)
    threads = list(source._readers)
    source.close()
    step.join()
    assert threads
    assert not any(thread.is_alive() for thread in threads)
    forget(None)  # of the step that was being begun meanwhile


def suppressed(work: Any, *given: Any) -> None:
    """Do something, whatever becomes of it."""
    with suppress(BaseException):
        work(*given)


def test_a_thread_that_was_halted_waits_for_nothing_and_others_go_on(served: Served, tmp_path: Path) -> None:
    path = opened(served, tmp_path)
    (index,) = ensure_indexes([path], progress=False)
    errors: list[BaseException] = []

    def halted() -> None:
        halt([threading.current_thread()])
        try:
            index.media_bytes(0)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=halted)
    thread.start()
    thread.join()
    assert [type(error) for error in errors] == [Ended]
    assert index.media_bytes(0)[0]


def test_parts_and_whole_copies_together_stay_below_the_limit(tmp_path: Path) -> None:
    copy = tmp_path / "0123456789abcdef-shard.tar"
    copy.write_bytes(bytes(60_000))
    held = Held(tmp_path, max_bytes=100_000)
    for number in range(20):
        held.save("a", bytes([number]) * 10_000, offset=number)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 100_000
    assert copy.exists()
    assert held.load("a", offset=19, size=10_000) == bytes([19]) * 10_000
    copy.write_bytes(bytes(99_000))
    held.save("a", bytes(10_000), offset=30)
    assert held.load("a", offset=30, size=10_000) is None  # copies that are in use leave no room
    assert copy.exists()
