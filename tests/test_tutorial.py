"""The tutorial, command by command as the page has them."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SmallWorld
from tests.data import build

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"(?ms)^```(\w*)\n(.+?)^```$", (ROOT / "docs" / "tutorial.md").read_text())
"""(language, text) of every block of code on the page; commands have no language."""


def commands() -> list[list[str]]:
    """The words of every command on the page."""
    return [shlex.split(line) for language, block in BLOCKS if not language for line in block.splitlines()]


def table() -> list[dict[str, str]]:
    """The rows of the page's table."""
    (text,) = [block for language, block in BLOCKS if language == "csv"]
    return list(csv.DictReader(io.StringIO(text)))


def test_the_page_has_every_step() -> None:
    assert [words[1] for words in commands()] == ["shards", "shards", "shards", "train", "ask", "report"]
    assert all(words[0] == "arcvideo" for words in commands())
    assert len(table()) == 2


@pytest.mark.slow
def test_thirty_clips_become_an_answer(small_world: SmallWorld, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    bright, dark = table()
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(bright))
        writer.writeheader()
        for number in range(30):
            name = f"clip-{number:02d}.mp4"
            (tmp_path / "clips" / name).write_bytes(build.mp4(1.0, shade=(200 if number % 2 == 0 else 20) + number))
            writer.writerow({**(bright if number % 2 == 0 else dark), "file": name})
    export = tmp_path / "runs" / "tiny_shorts" / "sft" / "export"
    export.parent.mkdir(parents=True)
    export.symlink_to(small_world.base)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = {}
    for words in commands():
        short = ["runner.steps=3", "evaluation.bootstrap=20"] if words[1] == "train" else []
        command = [sys.executable, "-m", "arcvideo", *words[1:], *short]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        said[words[1]] = done.stdout
    assert "mcq_accuracy" in said["train"]
    assert said["ask"].strip()
    assert list((tmp_path / "look").iterdir())
    assert (tmp_path / "runs" / "tiny_shorts" / "report.html").exists()
