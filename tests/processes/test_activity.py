"""What ranks know of each other: who is gone, stopped, silent or busy, and whom a line names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arcvideo.processes import activity
from arcvideo.processes.activity import ABSENT, GONE, SILENT, STOPPED, THERE, Activity, Seen, blame
from tests.runner.job import ROOT
from tests.spawned import running

PEER = """
import sys, time
from pathlib import Path
from arcvideo.processes.activity import Activity, note
with Activity(Path(sys.argv[1]), rank=1, ranks=2, say=print):
    note("in step 7")
    print("there", flush=True)
    sys.stdin.readline()
"""


def peer(logs: Path) -> list[str]:
    return [sys.executable, "-c", PEER, str(logs)]


def seen(here: Activity, *, until: Callable[[Seen], bool]) -> Seen:
    """The other rank, once it looks like that."""
    limit = time.monotonic() + 300
    while True:
        other = here.look()[1]
        if until(other):
            return other
        assert time.monotonic() < limit, other


def test_a_peer_that_lives_is_stopped_killed_or_takes_its_leave_is_told_apart(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with Activity(tmp_path, rank=0, ranks=2, say=print) as here:
        assert here.look()[1].state == ABSENT
        for last in (signal.SIGKILL, None):
            with running(peer(tmp_path), **pipes) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stdout.readline() == "there\n"
                there = seen(here, until=lambda other: other.state == THERE)
                assert there.doing == "in step 7"
                process.send_signal(signal.SIGSTOP)
                assert seen(here, until=lambda other: other.state != THERE).state == STOPPED
                process.send_signal(signal.SIGCONT)
                if last is None:
                    process.communicate("\n", timeout=300)
                else:
                    process.send_signal(last)
                gone = seen(here, until=lambda other: other.state == GONE)
                assert gone.ended is (last is None)
                assert gone.doing == "in step 7"


def test_a_peer_on_another_machine_is_silent_when_it_has_no_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "_FAR_SECONDS", 0.1)
    with Activity(tmp_path, rank=0, ranks=2, say=print) as here:
        row = json.loads((tmp_path / "rank_0.doing").read_text())
        far = row | {"rank": 1, "machine": "another", "pid": 1, "doing": "in step 7"}
        (tmp_path / "rank_1.doing").write_text(json.dumps(far))
        assert here.look()[1].state == SILENT
        assert blame(here.look()).startswith("rank 1 does not answer: in step 7, for ")


def test_the_line_names_who_does_not_wait_and_of_these_who_began_first() -> None:
    def rank(number: int, doing: str, seconds: float, *, waits: bool = False) -> Seen:
        return Seen(rank=number, state=THERE, doing=doing, seconds=seconds, waits=waits)

    ranks = [rank(0, "in step 5", 31, waits=True), rank(1, "in step 5", 30), rank(2, "in step 4", 40)]
    assert blame(ranks) == "rank 2 is slow: in step 4, for 40 s"
    assert blame(ranks, waits=[2]) == "rank 1 is slow: in step 5, for 30 s"
    assert blame(ranks, waits=[1, 2]).startswith("all ranks wait for each other: rank 0 waits: in step 5, for 31 s; ")


def test_what_is_told_fits_its_line_and_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    with Activity(tmp_path, rank=0, ranks=1, say=print) as here:
        here.note("in step 1", [f"{number}-\x1b{'k' * 500}" for number in range(50)])
        text = (tmp_path / "rank_0.doing").read_text()
        assert len(text) == 2048
        assert json.loads(text)["doing"].startswith("in step 1, samples 0-\x1b")
        os.unlink(tmp_path / "rank_0.doing")
        here.note("in step 2")
    with Activity(Path("/proc/nowhere"), rank=0, ranks=1, say=print) as here:
        here.note("in step 1")
