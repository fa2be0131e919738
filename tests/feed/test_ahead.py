from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from arcvideo.decoding.pool import MediaPool
from arcvideo.feed.ahead import Ahead
from arcvideo.feed.source import Source
from arcvideo.shards.write import Record, write_shards
from tests.data import build

PATIENCE = 60.0
"""Seconds after which a test gives up on something that must come."""


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 clips; no two are alike, for equal ones are decoded once."""
    folder = tmp_path_factory.mktemp("shards")
    media = [{"mp4": build.mp4(1.0, sound=False, shade=number)} for number in range(24)]
    records = (
        Record(key=f"clip-{number:05d}", content={"items": build.items(number)}, media=part)
        for number, part in enumerate(media)
    )
    write_shards(records, out=folder)
    return str(folder / "*.tar")


class Gate:
    """Media behind a pipe: reading waits for a byte that comes when `wanted` readers wait at once."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.most, self.now = wanted, 0, 0
        self._lock = threading.Lock()
        self._out, self._in = os.pipe()

    def enter(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now == self.wanted:
                os.write(self._in, bytes(1 << 10))  # enough for all that follow
        assert os.read(self._out, 1) == b"\0"
        with self._lock:
            self.now -= 1

    def give_up(self) -> None:
        os.write(self._in, bytes(1 << 10))


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("packs", [1, 4])
def test_as_many_clips_are_decoded_at_once_as_there_are_workers(
    pattern: str, workers: int, packs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, gate = MediaPool.read_clip, Gate(workers)

    def slow(self: MediaPool, data: bytes, **options: Any) -> Any:
        gate.enter()
        with lock:
            return read(one_process, data, **options)

    lock, one_process = threading.Lock(), MediaPool(count=1)
    monkeypatch.setattr(MediaPool, "read_clip", slow)
    settings = build.settings(pattern, packs_per_step=packs, workers=workers, source_items_per_clip=1)
    data = Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=1)
    timer = threading.Timer(PATIENCE, gate.give_up)
    timer.start()
    data.batches(0)
    timer.cancel()
    data.close()
    one_process.close()
    assert gate.most == workers


def test_steps_come_in_order_whatever_finishes_first() -> None:
    second_is_done = threading.Event()

    def load(job: str) -> str:
        if job == "a":
            assert second_is_done.wait(PATIENCE)
        if job == "c":
            second_is_done.set()
        return job.upper()

    ahead: Ahead[str, str, list[list[str]]] = Ahead(workers=2, load=load)
    ahead.start(0, [["a"], ["b"]], join=list)
    ahead.start(1, [["c"]], join=list)
    assert ahead.take(0) == [["A"], ["B"]]
    assert ahead.take(1) == [["C"]]
    ahead.close()


def test_steps_that_nobody_wants_any_more_are_not_begun() -> None:
    begun: list[str] = []
    go = threading.Event()

    def load(job: str) -> str:
        begun.append(job)
        assert go.wait(PATIENCE)
        return job

    ahead: Ahead[str, str, list[list[str]]] = Ahead(workers=1, load=load)
    ahead.start(0, [["a"]], join=list)
    ahead.start(1, [["b", "c"]], join=list)
    ahead.start(2, [["d"]], join=list)
    ahead.keep([0, 2])
    go.set()
    assert ahead.take(2) == [["d"]]
    assert ahead.take(0) == [["a"]]
    ahead.close()
    assert begun == ["a", "d"]


def test_an_error_of_a_job_is_that_of_its_step() -> None:
    def load(job: int) -> int:
        return 1 // job

    ahead: Ahead[int, int, list[list[int]]] = Ahead(workers=2, load=load)
    ahead.start("good", [[1]], join=list)
    ahead.start("bad", [[1, 0]], join=list)
    assert ahead.take("good") == [[1]]
    with pytest.raises(ZeroDivisionError):
        ahead.take("bad")
    ahead.close()


def test_jobs_in_order_run_side_by_side_and_are_not_read_far_ahead() -> None:
    barrier = threading.Barrier(3, timeout=PATIENCE)
    asked: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(9):
            asked.append(number)
            yield number

    def load(job: int) -> int:
        barrier.wait()
        return job

    ahead: Ahead[int, int, Any] = Ahead(workers=3, load=load)
    given = ahead.in_order(jobs())
    assert next(given) == 0
    assert len(asked) == 4
    assert list(given) == list(range(1, 9))
    ahead.close()


def test_families_of_one_clip_that_are_loaded_at_once_wait_for_one_decoding(pattern: str) -> None:
    data = Source(build.settings(pattern), layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=1)
    loader, both = data._loaders[0], threading.Barrier(2, timeout=PATIENCE)
    read, often = loader.read, []
    arrived = threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        often.append(1)
        assert arrived.wait(PATIENCE)
        return read(*arguments, **options)

    loader.read = slow  # type: ignore[assignment]
    found = []

    def ask() -> None:
        both.wait()
        found.append(loader.media(0))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while loader._loading.keys() == set():
        pass
    arrived.set()
    for thread in threads:
        thread.join(PATIENCE)
    data.close()
    assert len(often) == 1
    assert found[0].pixels is not None
    assert torch.equal(found[0].pixels, found[1].pixels)


def test_evaluation_decodes_ahead_and_asks_in_order(pattern: str) -> None:
    alone, ahead = (
        Source(
            build.settings(pattern, workers=workers),
            layout=build.LAYOUT,
            tokenizer=build.tokenizer(),
            seed=1,
            supervised=False,
        )
        for workers in (0, 3)
    )
    assert [prompt.key for prompt in ahead.evaluation()] == [prompt.key for prompt in alone.evaluation()]
    ahead.close()
