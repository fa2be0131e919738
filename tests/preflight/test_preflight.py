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

from arcvideo.data.cost import pack_cost
from arcvideo.data.expand import expand_shards
from arcvideo.data.index import build_index, ensure_indexes
from arcvideo.data.source import Source
from arcvideo.model.tokenizer import load_tokenizer
from arcvideo.preflight.__main__ import main
from arcvideo.preflight.estimate import estimate
from arcvideo.preflight.fitting import misfits
from arcvideo.preflight.machine import Machine, machine_of
from arcvideo.preflight.memory import host_memory, memory, parameters
from arcvideo.preflight.volume import volume
from arcvideo.recipe import load_recipe, planned_stages
from tests.compose import settings
from tests.conftest import SmallWorld

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize(
    ("gpus", "gib", "remedy"), [(8, 60, "engine=zero2"), (8, 40, "engine=zero3"), (1, 48, "engine=zero2_offload")]
)
def test_7b_on_too_small_a_device_names_what_would_fit(shard: Path, gpus: int, gib: int, remedy: str) -> None:
    build_index(shard)
    words = ["stage=sft", "model=arc_hunyuan_7b", "engine=zero1", "data.packs_per_step=8", f"run_dir={shard.parent}"]
    words.append(f"data.sources.mine.shards={shard}")
    config = settings(*words)
    machine = Machine(device="a100", gpus=gpus, gpu_gib=gib)
    found = estimate(config, machine=machine)
    told = misfits(words, config=config, found=found, machine=machine)
    (line,) = [line for line in told if "on a device of" in line]
    assert line.endswith(f": {remedy}")


def test_a_finer_cut_needs_less_on_each_device() -> None:
    words = ["stage=sft", "model=arc_hunyuan_7b", "data.sources.mine.shards=x.tar"]
    assert 7.4e9 < parameters(settings(*words).model)["llm"] < 7.6e9
    needs = [memory(settings(*words, f"engine=zero{zero}"), ranks=8, longest=20480).total for zero in (1, 2, 3)]
    assert needs == sorted(needs, reverse=True)


@pytest.mark.parametrize(
    "name",
    [
        "arc_hunyuan_7b",
        "arc_hunyuan_7b_8xh20",
        "arc_hunyuan_7b_8xa100",
        "arc_hunyuan_7b_1xh200",
        "arc_hunyuan_7b_1xh200_offload",
        "finetune_arc",
    ],
)
def test_every_7b_recipe_fits_the_machine_it_is_cut_for(name: str) -> None:
    recipe = load_recipe(name)
    machine = machine_of({}, recipe=recipe.machine)
    for stage in planned_stages(recipe):
        longest = 17_500  # the longest clip with its question
        assert memory(stage.config, ranks=machine.gpus, longest=longest).total < machine.room, stage.name
        assert host_memory(stage.config, ranks=machine.gpus) < machine.host_gib * (1 << 30), stage.name
        assert stage.config.data.packs_per_step % machine.gpus == 0
        assert stage.config.stage.objective != "grpo" or stage.config.grpo.num_prompts % machine.gpus == 0


def test_grpo_counts_keys_values_and_whole_weights_for_decoding() -> None:
    words = ["stage=grpo", "model=arc_hunyuan_7b", "data.sources.mine.shards=x.tar", "grpo.num_prompts=8"]
    cut, whole = (memory(settings(*words, f"engine=zero{zero}"), ranks=8, longest=10_000) for zero in (3, 1))
    token = 2 * 32 * 8 * 128 * 2  # keys and values, layers, heads, width, bytes
    assert whole.rollout == token * (10_000 + 8 * 1024)
    assert cut.rollout - whole.rollout == 2 * parameters(settings(*words).model)["llm"]
    other = memory(settings(*words, "engine=zero3", "stage.objective=next_token"), ranks=8, longest=10_000)
    assert other.rollout == 0


def test_the_steps_are_those_of_the_plan_that_training_follows(small_world: SmallWorld) -> None:
    ensure_indexes(expand_shards(f"{small_world.data}/*.tar"), progress=False)
    for stage in ("sft", "grpo"):
        config = settings(f"stage={stage}", *small_world.overrides)
        source = Source(
            config.data, layout=config.layout, tokenizer=load_tokenizer(small_world.base), seed=config.runner.seed,
            supervised=stage == "sft", cost=pack_cost(config.model, trained=config.stage.train, towers=False),
        )  # fmt: skip
        found = volume(config)
        assert found.how == "plan", "opening the source has counted the tokens"
        if stage == "sft":
            assert (found.steps, found.tokens) == (source.steps_per_epoch, source.plan.epoch(0).tokens)
        else:
            assert found.steps == source.prompt_steps_per_epoch(config.grpo.num_prompts)
        source.close()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("gpus=many", "gpus=many: expected a number"),
        ("device=h9", "choose from h20"),
        ("stage=sfd", "the recipe has sft"),
        ("largest=maybe", "yes or no"),
    ],
)
def test_a_wrong_word_is_told_with_its_key(shard: Path, word: str, told: str) -> None:
    with pytest.raises(SystemExit, match=told) as caught:
        main([f"recipe={shard.parent / 'small.yaml'}", word])
    assert len(str(caught.value).splitlines()) == 1
