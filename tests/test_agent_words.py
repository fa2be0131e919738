"""Words as the agent of a W&B sweep writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arcvideo.composing.overrides import agent_words

ROOT = Path(__file__).resolve().parent.parent
INSIDE = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stage=sft", "--optimizer.lr=0.1"], ["stage=sft", "optimizer.lr=0.1", "output=sft-r1"]),
        (["stage=arc_hunyuan_7b/sft"], ["stage=arc_hunyuan_7b/sft", "output=sft-r1"]),
        (["--stage.name=x", "stage=sft", "output=mine"], ["stage.name=x", "stage=sft", "output=mine"]),
        (["stage=sft", "--config-dir=conf", "--lr=3"], ["stage=sft", "--config-dir=conf", "--lr=3", "output=sft-r1"]),
    ],
)
def test_settings_of_an_agent_are_settings_and_each_run_has_its_folder(words: list[str], expected: list[str]) -> None:
    assert agent_words(words, environment=INSIDE) == expected


def test_outside_of_a_sweep_no_folder_is_chosen() -> None:
    assert agent_words(["stage=sft", "--runner.steps=3"], environment={}) == ["stage=sft", "runner.steps=3"]


def test_the_command_of_a_sweep_composes_its_settings(tmp_path: Path) -> None:
    """As `command: [${env}, arcvideo, train, stage=sft, ${args}]` starts it."""
    env = {**os.environ, **INSIDE, "PYTHONPATH": str(ROOT)}
    words = ["stage=sft", "--optimizer.lr=0.002", "--runner.seed=7", "--cfg", "job"]
    command = [sys.executable, "-m", "arcvideo.train", *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lr: 0.002" in done.stdout
    assert "seed: 7" in done.stdout
