"""`arcvideo`: one command, whose help is there at once, and a shell that knows its words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arcvideo.__main__ import COMMANDS, commands
from arcvideo.composing.completion import SHELLS, candidates, script

ROOT = Path(__file__).resolve().parent.parent
KNOWN = list(commands())


def arcvideo(*words: str, path: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}" if path else str(ROOT)}
    return subprocess.run([sys.executable, "-m", "arcvideo", *words], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("fake")
    (folder / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    return str(folder)


@pytest.mark.parametrize("name", ["", *KNOWN])
def test_help_loads_nothing_heavy(name: str, without_torch: str) -> None:
    done = arcvideo(*filter(None, [name]), "--help", path=without_torch)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"arcvideo {name}" in done.stdout or name == "parts"  # which is `arcvideo model assemble`
    # Modules are run in this way, too; people are shown one.
    assert re.findall("python -m (?!arcvideo.train` is the same)", done.stdout) == []


@pytest.mark.parametrize("name", ["index", "import", "inspect", "verify", "stats", "transcribe"])
def test_help_of_what_is_done_with_shards_loads_nothing_heavy(name: str, without_torch: str) -> None:
    done = arcvideo("shards", name, "--help", path=without_torch)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: arcvideo shards {name} " in done.stdout


def test_the_list_has_every_command_and_no_other() -> None:
    said = arcvideo("--help").stdout
    listed = [line.split()[0] for line in said.splitlines() if line.startswith("  ")]
    assert listed == KNOWN
    assert set(KNOWN) <= set(COMMANDS)


def test_a_word_that_is_no_command_is_one_line_with_the_nearest() -> None:
    done = arcvideo("trian")
    assert done.returncode == 1
    assert done.stderr.startswith("error: trian: no such command (did you mean 'train'?)")
    assert len(done.stderr.splitlines()) == 1


def test_train_through_the_command_is_the_module(without_torch: str, tmp_path: Path) -> None:
    words = ["stage=grpo", "--cfg", "job", "--package", "optimizer"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    module = subprocess.run([sys.executable, "-m", "arcvideo.train", *words], env=env, capture_output=True, text=True)
    assert module.stdout.startswith("# @package optimizer")
    assert arcvideo("train", *words, path=without_torch).stdout == module.stdout
    refused = arcvideo("train", "stage=sft", path=without_torch, cwd=tmp_path)
    assert refused.returncode == 1
    assert "sft needs pretrain" in refused.stderr


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("arcvideo pre", ["preflight"]),
        ("arcvideo train stage=gr", ["stage=grpo"]),
        ("arcvideo train model=arc_hunyuan_7b stage=arc_hunyuan_7b/co", ["stage=arc_hunyuan_7b/cold_start"]),
        ("arcvideo train stage=sft optimizer.lr", ["optimizer.lr=", "optimizer.lr_factors="]),
        ("arcvideo train engine=zero3_", ["engine=zero3_offload"]),
        ("arcvideo pipeline recipe=pilot", ["recipe=pilot_tiny"]),
        ("arcvideo pipeline stale=r", ["stale=refuse", "stale=rerun"]),
        ("arcvideo ask check", ["checkpoint="]),
        ("arcvideo completion f", ["fish"]),
        ("arcvideo nothing x", []),
    ],
)
def test_words_are_completed(line: str, offered: list[str]) -> None:
    assert candidates(line, commands=KNOWN) == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_runs_what_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "arcvideo").write_text(f'#!/bin/sh\nexec {sys.executable} -m arcvideo "$@"\n')
    (tmp_path / "arcvideo").chmod(0o755)
    ask = "COMP_LINE='arcvideo train stage=gr'; COMP_POINT=${#COMP_LINE}; _arcvideo; echo \"${COMPREPLY[@]}\""
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", f"{script('bash')}\n{ask}"], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "grpo", done.stderr  # bash itself keeps what stands before the last =
    assert all(script(shell) for shell in SHELLS)


@pytest.mark.parametrize("words", [["-sc", "install=bash"], ["stage=sft", "--hydra-help"],
                                   ["stage=sft", "--cfg", "hydra", "--resolve"]], ids=" ".join)  # fmt: skip
def test_hydras_own_flags_are_answered(words: list[str], tmp_path: Path) -> None:
    done = arcvideo("train", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 10


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("synthetic", ["--out=~/made", "--clips=1", "--test-clips=1", "--texts=1", "--workers=1"]),
        ("synthetic.base", ["--data=~/made", "--out=~/base"]),
        ("report", ["~/runs"]),
        ("verify", ["~/runs"]),
        ("model.disk.parts", ["--base=~/llm", "--out=~/base"]),
        ("model.disk.parity", ["--fixtures=~/fixtures"]),
    ],
)
def test_home_is_meant_by_a_tilde_behind_an_equals_sign(module: str, words: list[str], tmp_path: Path) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    home.mkdir()
    env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", f"arcvideo.{module}", *words]
    done = subprocess.run(call, cwd=here, env=env, capture_output=True, text=True)
    assert not list(here.iterdir())
    assert "~" not in done.stdout + done.stderr
    assert str(home) in done.stdout + done.stderr
