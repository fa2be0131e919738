"""One job at a time in a stage's folder: jobs that share a parent wait for whoever trains it, then find it finished."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arcvideo.files import write_whole
from arcvideo.processes.activity import waiting
from arcvideo.processes.launcher import launch_variables
from arcvideo.processes.locks import hold_in_turn

POLL_SECONDS = 1.0
FRESH_SECONDS = 120.0
"""Ranks of one job start within this time; an older word was left by an earlier job at the same address."""
SKEW_SECONDS = 2.0
"""By which the clocks of machines, and of a file system, may differ."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold `<folder>.lock` while the block runs; waits for another holder and says so once.

    The kernel frees the lock of a process that dies, so nothing has to be cleaned up after a kill. Of a job of several
    processes rank 0 alone comes here.
    """
    path = folder.with_name(f"{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        hold_in_turn(file, path=path, busy=f"another job works in {folder}")
        yield


@contextmanager
def alone_filling(folder: Path) -> Iterator[None]:
    """As `alone_in` for a folder that a user named: it is made, and nothing is put in it or beside it.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY)
    try:
        hold_in_turn(place, path=folder, busy="another job writes there")
        yield
    finally:
        os.close(place)


@contextmanager
def agreed(folder: Path, *, rank: int, job: str, word: str) -> Iterator[str]:
    """Yield the word of rank 0 on every rank of a job, told through a file beside the folder before any rank has met
    another.

    Args:
        job: what the ranks have in common, from `launch`.
        word: rank 0's word; the others' is not looked at.
    """
    if rank:
        with waiting("for the word of rank 0"):
            said = _hear(folder, job=job)
        yield said
        return
    path = _word_file(folder)
    write_whole(path, json.dumps({"job": job, "word": word}))
    try:
        yield word
    finally:
        # Ranks that train have met by now. Of the other words there may still be one who has not heard.
        if word not in ("finished", "stale"):
            path.unlink(missing_ok=True)


def _hear(folder: Path, *, job: str) -> str:
    since = max(time.time() - FRESH_SECONDS, _launched() - SKEW_SECONDS)
    path, waits, announced = _word_file(folder), time.monotonic(), False
    while True:
        if not announced and time.monotonic() - waits > FRESH_SECONDS:
            announced = True
            print(f"waiting for the word of rank 0 in {path}: it waits for another job, or is gone", file=sys.stderr)
        try:
            said = json.loads(path.read_text())
            if said["job"] == job and path.stat().st_mtime >= since:
                return str(said["word"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not yet, or not whole
        time.sleep(POLL_SECONDS)


def _launched() -> float:
    """Return when the process that started this rank began, which is before rank 0 can have spoken in this launch."""
    try:
        ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0.0
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def _word_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.word")


def launch() -> tuple[int, int, str]:
    """Return (rank, ranks, what the ranks of this job have in common).

    Raises:
        ValueError: started by srun without any list of hosts.
    """
    place = os.environ | launch_variables(os.environ)
    common = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
    return int(place["RANK"]), int(place["WORLD_SIZE"]), " ".join(place.get(name, "") for name in common)
