"""A W&B server that gives no whole answer costs a run a stated time and one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import HEAD, hostile
from tests.runner.job import ROOT
from tests.spawned import finished

RUN = """
import sys
from pathlib import Path

import wandb
from arcvideo.tracking import metrics, mirrors
from arcvideo.tracking.settings import LoggerSettings

wandb.setup()  # takes longer than the patience below on a busy machine
metrics._PATIENCE = mirrors._PATIENCE = 15
mirror = metrics.WandbMirror(LoggerSettings(wandb="online"), folder=Path(sys.argv[1]), name="x", config={}, run_id=None)
for step in range(3):
    mirror.write({"step": step, "train/loss": 1.0})
mirror.close(exit_code=0)
print("training went on")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [{"first": b""}, {"first": HEAD + b"\r\n", "drip": b" "}, {"first": HEAD + b"\r\n{", "close": True}],
    ids=["silent", "drips", "closes in the body"],
)
def test_wandb_is_given_up_in_one_line_that_names_the_server(how: dict[str, Any], tmp_path: Path) -> None:
    with hostile(**how) as (url, asked):
        place = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}
        # The limit is for a hang: W&B's own process takes its time to end.
        done = finished([sys.executable, "-c", RUN, str(tmp_path)], seconds=600, cwd=ROOT, env=os.environ | place)
    assert asked
    assert done.returncode == 0, done.stderr
    assert "training went on" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if "training goes on" in line]
    assert line.startswith("W&B is off for this run")
    assert f"(server {url}; logger.wandb=offline asks none)" in line


ALONE = """
import os, signal, sys, time
from pathlib import Path

from arcvideo.tracking import metrics, mirrors, service
from arcvideo.tracking.settings import LoggerSettings

mirrors._PATIENCE, service.SECONDS = 3, 2
metrics._PATIENCE = 120
settings = LoggerSettings(wandb="offline")
mirror = metrics.WandbMirror(settings, folder=Path(sys.argv[1]), name="x", config={}, run_id=None)
mirror.write({"step": 0, "train/loss": 1.0})
until = time.monotonic() + 120
while not list(Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")) and time.monotonic() < until:
    time.sleep(0.1)
time.sleep(1)
(pid,) = service._children()
os.kill(pid, getattr(signal, sys.argv[2]))
print("pid", pid)
for step in range(1, 4):
    mirror.write({"step": step, "train/loss": 1.0})
    time.sleep(0.2)
mirror.close(exit_code=0)
print("training went on")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_process_of_wandb_that_is_gone_or_stands_still_is_one_line_and_no_wait_at_the_end(
    how: str, tmp_path: Path
) -> None:
    """The second one waited for ever at the end of the run, the first one ended with a traceback."""
    words = [sys.executable, "-c", ALONE, str(tmp_path), how]
    done = finished(words, seconds=300, cwd=ROOT, env=os.environ | {"WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    assert "training went on" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("W&B is off for this run")
    pid = int(done.stdout.partition("pid ")[2].split()[0])
    assert not Path(f"/proc/{pid}/cmdline").exists()
