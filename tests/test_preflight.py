"""Preflight: what a stage needs, told from settings and index, without torch."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from arcvideo.data.index import build_index
from arcvideo.preflight import Machine, estimate, memory, misfits, parameters
from tests.compose import settings

ROOT = Path(__file__).resolve().parent.parent
ITEMS = [{"task": "qa", "question": "how many?", "answer": str(number)} for number in range(4)]
RECIPE = """
name: small
run_dir: {folder}/run
overrides: [model=tiny, optimizer.name=adamw, '~data.sources.tiny_shorts', '~data.sources.text']
stages: ['stage=sft data.sources.mine.shards={folder}/mine.tar']
"""


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "mine.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(5):
            data = json.dumps({"text_only": True, "items": ITEMS}).encode()
            info = tarfile.TarInfo(f"clip-{number}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "small.yaml").write_text(RECIPE.format(folder=tmp_path))
    return path


def preflight(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "fake").mkdir(exist_ok=True)
    (folder / "fake" / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'fake'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "arcvideo.preflight", f"recipe={folder / 'small.yaml'}", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_recipe_is_estimated_without_torch(shard: Path) -> None:
    build_index(shard)
    done = preflight(shard.parent, "device=cpu", "gpus=1")
    assert (done.returncode, done.stderr) == (0, "")
    row = done.stdout.splitlines()[1].split()
    assert row[:2] == ["sft", "20"]


def test_what_cannot_fit_names_the_override(shard: Path) -> None:
    build_index(shard)
    done = preflight(shard.parent, "gpus=3", "data.packs_per_step=4")
    assert done.returncode == 2
    assert "data.packs_per_step=6" in done.stdout


@pytest.mark.parametrize("damage", ["missing", "no index", "damaged"])
def test_shards_that_cannot_be_read_are_one_line(shard: Path, damage: str) -> None:
    if damage == "missing":
        shard.unlink()
    if damage == "damaged":
        build_index(shard)
        shard.write_bytes(b"x" * 4096)
    done = preflight(shard.parent)
    assert done.returncode == 1
    assert done.stderr.startswith("error: data.sources.mine")
    assert len(done.stderr.splitlines()) == 1


def test_7b_needs_a_finer_cut_on_one_rank_and_says_which(shard: Path) -> None:
    build_index(shard)
    words = ["stage=sft", "model=arc_hunyuan_7b", "engine=zero1", f"data.sources.mine.shards={shard}"]
    config = settings(*words, f"run_dir={shard.parent}")
    machine = Machine(device="a100", gpus=8)
    found = estimate(config, machine=machine)
    assert 7.4e9 < parameters(config.model)["llm"] < 7.6e9
    told = misfits(config, found=found, machine=machine, gpu_gib=60, host_gib=float("inf"))
    assert any("engine=zero2" in line for line in told)
    by_stage = [memory(config, ranks=8, stage=stage).total for stage in range(4)]
    assert by_stage == sorted(by_stage, reverse=True)
