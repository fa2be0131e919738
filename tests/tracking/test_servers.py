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
