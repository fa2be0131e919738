"""Whatever befalls a decoding process from outside costs no clip: it is read again, with workers or without."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcvideo.feed.source import Source
from arcvideo.media.settings import MediaLimits
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.shards.write import Record, write_shards
from arcvideo.types import summed
from tests.data import build
from tests.media.conftest import picture

CLIPS = 6
ITEM = {"task": "qa", "question": "what is shown?", "answer": "red"}


def stills() -> Iterator[Record]:
    for number in range(CLIPS):
        pixels = picture("bmp", size=(40 + number, 30))
        yield Record(key=f"clip-{number}", content={"items": [ITEM]}, media={"bmp": pixels})


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("stills")
    write_shards(stills(), out=folder)
    return str(folder / "*.tar")


def opened(pattern: str, folder: Path, *, workers: int, **limits: float) -> Source:
    settings = DataSettings(
        sources={"still": SourceSettings(shards=pattern)},
        token_budget=25,  # one clip a step
        wording="brief",
        workers=workers,
        limits=MediaLimits(**limits),  # type: ignore[arg-type]
    )
    return Source(
        settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=1, quarantine_file=folder / "quarantine.jsonl"
    )


def read_all(source: Source) -> dict[str, int]:
    assert source.steps_per_epoch >= CLIPS
    counts = summed(source.batches(step).counts for step in range(source.steps_per_epoch))
    return {name: counts[name].get("still", 0) for name in ("planned", "seen", "quarantined")}


def quarantined(folder: Path) -> list[tuple[str, str]]:
    file = folder / "quarantine.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [(row["key"], row["reason"]) for row in rows]


def processes(source: Source) -> list[int]:
    found = (worker._process for worker in source._media._workers)
    return [process.pid for process in found if process is not None]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_whose_process_was_killed_at_work_is_read_again(pattern: str, tmp_path: Path, workers: int) -> None:
    source = opened(pattern, tmp_path, workers=workers, deadline_seconds=60)
    source.batches(0)
    (pid,) = processes(source)
    while workers and not all(step.whole.done() for step in source._ahead._under_way.values()):
        time.sleep(0.01)  # nothing is at work when it is stopped
    os.kill(pid, signal.SIGSTOP)  # so that a file is certainly at work when the kill comes, as the OOM killer's does
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    assert read_all(source) == {"planned": CLIPS, "seen": CLIPS, "quarantined": 0}
    assert quarantined(tmp_path) == []
    assert processes(source) != [pid]
    source.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_whose_process_hung_once_is_read_again(pattern: str, tmp_path: Path, workers: int) -> None:
    source = opened(pattern, tmp_path, workers=workers, deadline_seconds=5.0)
    source.batches(0)
    (pid,) = processes(source)
    while workers and not all(step.whole.done() for step in source._ahead._under_way.values()):
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
    assert read_all(source) == {"planned": CLIPS, "seen": CLIPS, "quarantined": 0}
    assert processes(source) != [pid]
    source.close()


def test_a_process_killed_between_two_clips_costs_none(pattern: str, tmp_path: Path) -> None:
    source = opened(pattern, tmp_path, workers=0)
    for step in range(3):
        source.batches(step)
        (pid,) = processes(source)
        os.kill(pid, signal.SIGKILL)
        source._media._workers[0]._process.wait()  # type: ignore[union-attr]
    assert read_all(source) == {"planned": CLIPS, "seen": CLIPS, "quarantined": 0}
    source.close()


@pytest.mark.slow
def test_a_clip_beyond_the_memory_limit_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    huge = Record(key="huge", content={"items": [ITEM]}, media={"png": picture("png", size=(8000, 8000))})
    write_shards([*stills(), huge], out=tmp_path)
    source = opened(str(tmp_path / "*.tar"), tmp_path, workers=0, max_memory_bytes=900 << 20)
    counts = read_all(source)
    source.close()
    assert counts == {"planned": CLIPS + 1, "seen": CLIPS, "quarantined": 1}
    assert quarantined(tmp_path) == [("huge", "too_large")]
