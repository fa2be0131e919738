"""The Dockerfile, followed as far as that goes without an engine: what is copied suffices, nothing floats."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.spawned import tool

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Dockerfile").read_text()
STAGES = [part for part in re.split(r"(?m)^(?=FROM )", TEXT) if part.startswith("FROM ")]


def names(stage: str) -> str:
    return stage.splitlines()[0].rpartition(" AS ")[2]


def copied(stage: str) -> list[tuple[str, str]]:
    """(source, target) of everything that a stage copies from the checkout."""
    found = []
    for line in re.findall(r"(?m)^COPY (.+)$", stage):
        *sources, target = line.split()
        found += [(source, target) for source in sources]
    return found


def test_there_is_an_image_for_cpus_and_one_for_gpus() -> None:
    assert [names(stage) for stage in STAGES] == ["cpu", "cuda"]
    assert copied(STAGES[0]) == copied(STAGES[1])


@pytest.mark.parametrize("stage", STAGES, ids=names)
def test_bases_are_pinned_and_the_user_is_not_root(stage: str) -> None:
    base = stage.split()[1]
    version = re.search(r"\$\{(\w+)\}", base)
    assert version is not None
    (tag,) = re.findall(rf"(?m)^ARG {version[1]}=(.+)$", TEXT)
    assert re.match(r"\d+\.\d+\.\d+-", tag), "a whole version, not one that moves"
    assert re.findall(r"(?m)^USER (.+)$", stage) == ["1000"]
    (torch,) = re.findall(r'(?m)^ARG TORCH="(torch==[\d.]+)', stage)
    (made,) = re.findall(r"(?m)^PIP_TORCH \?= (.+)$", (ROOT / "Makefile").read_text())
    assert torch == made


@pytest.mark.parametrize("stage", STAGES, ids=names)
def test_what_is_copied_is_there_and_sent_to_the_engine(stage: str) -> None:
    sent = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    for source, _ in copied(stage):
        assert (ROOT / source).exists()
        assert source in sent


@pytest.mark.slow
def test_what_is_copied_suffices_for_make_env_and_the_command(tmp_path: Path) -> None:
    stage = STAGES[0]
    for source, target in copied(stage):
        place = tmp_path / "image" / ("" if target == "./" else target)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, symlinks=True)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)
    image, installed = tmp_path / "image", tmp_path / "installed"
    steps = subprocess.run(
        ["make", "--dry-run", "env", f"PYTHON={sys.executable}"], cwd=image, capture_output=True, text=True, check=True
    ).stdout
    assert "--requirement requirements.lock" in steps
    assert "--editable ." in steps
    # The last step of it; the packages before it are those of this environment.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(installed), "."], cwd=image, check=True)
    env = {**os.environ, "PYTHONPATH": str(installed)}
    for words in (["--help"], ["train", "stage=sft", "--cfg", "job"], ["preflight", "recipe=tiny_shorts", "--help"]):
        command = [sys.executable, "-c", "from arcvideo.__main__ import main; main()", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    where = [sys.executable, "-c", "import arcvideo; print(arcvideo.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(installed))


def test_the_linter_has_nothing_to_say() -> None:
    linter = str(tool("hadolint"))
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    floating = "FROM python:latest\nRUN cd /tmp\n"
    done = subprocess.run([linter, "-"], input=floating, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DL3007" in done.stdout
