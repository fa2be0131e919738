"""A run that hangs ends, and says where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from arcvideo.processes.activity import HANG_EXIT_CODE
from tests.runner.job import ROOT
from tests.spawned import finished

_HANGING = """
import sys, threading, torch
from pathlib import Path
from arcvideo.processes.ranks import World
from arcvideo.processes.watchdog import Watchdog

def the_place_that_hangs():
    threading.Event().wait(600)

world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
with Watchdog(seconds=float(sys.argv[3]), folder=Path(sys.argv[1]), world=world) as dog:
    for step in range(3):
        dog.note(f"in step {step}", ["clip-7", "a\\x1b]0;owned\\x07"])
    if sys.argv[2] == "hang":
        the_place_that_hangs()
"""


def start(folder: Path, how: str, *, seconds: float) -> subprocess.CompletedProcess[str]:
    return finished([sys.executable, "-c", _HANGING, str(folder), how, str(seconds)], cwd=ROOT, seconds=900)


def test_a_hang_ends_with_stacks_and_the_sample_at_hand(tmp_path: Path) -> None:
    done = start(tmp_path, "hang", seconds=0.5)
    assert done.returncode == HANG_EXIT_CODE
    assert "while in step 2; samples clip-7, a\\x1b]0;owned\\x07" in done.stderr
    assert not set("\x1b\x07") & set(done.stderr + (tmp_path / "rank-0.txt").read_text())
    assert "the_place_that_hangs" in done.stderr
    assert "the_place_that_hangs" in (tmp_path / "rank-0.txt").read_text()


def test_a_run_that_ends_in_time_is_left_alone(tmp_path: Path) -> None:
    done = start(tmp_path, "end", seconds=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.iterdir())
