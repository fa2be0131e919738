"""Preflight: what a stage needs, told from settings and index, without torch."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from arcvideo.composing.recipe import ExpectedSource, load_recipe, planned_stages
from arcvideo.feed.source import Source
from arcvideo.flops import Segment
from arcvideo.model.disk.tokenizer import load_tokenizer
from arcvideo.planning.cost import pack_cost
from arcvideo.preflight.__main__ import main
from arcvideo.preflight.estimate import estimate
from arcvideo.preflight.fitting import full_together, misfits
from arcvideo.preflight.largest import run_largest
from arcvideo.preflight.machine import Machine, machine_of
from arcvideo.preflight.memory import host_memory, memory, parameters, trained_parameters
from arcvideo.preflight.row import fullest_row
from arcvideo.preflight.table import table
from arcvideo.preflight.trace_rollout import trace_rollout
from arcvideo.preflight.tracing import Tracing
from arcvideo.preflight.volume import volume
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import build_index, ensure_indexes
from tests.compose import settings
from tests.conftest import SmallWorld

ROOT = Path(__file__).resolve().parents[2]
ITEMS = [{"task": "qa", "question": "how many?", "answer": str(number)} for number in range(4)]
RECIPE = """
name: small
run_dir: {folder}/run
settings: {{model: tiny, optimizer.name: adamw, ~data.sources: null}}
stages: [{{stage: sft, data.sources.mine.shards: '{folder}/mine.tar'}}]
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
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_a_recipe_is_estimated_without_torch(shard: Path) -> None:
    build_index(shard)
    done = preflight(shard.parent, "device=cpu", "gpus=1")
    assert (done.returncode, done.stderr) == (0, "")
    row = done.stdout.splitlines()[1].split()
    assert row[:2] == ["sft", "20"]


def test_a_price_has_a_column_and_the_stages_a_total(shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_index(shard)
    recipe = shard.parent / "small.yaml"
    before = f"stages: [{{stage: pretrain, data.sources.mine.shards: '{shard}'}}, {{"
    recipe.write_text(recipe.read_text().replace("stages: [{", before))
    with pytest.raises(SystemExit) as done:
        main([f"recipe={recipe}", "device=h200", "gpus=2", "price=1e6", "data.packs_per_step=4", "largest=no"])
    assert done.value.code == 0
    run = capsys.readouterr().out.split("\n\n")[1]
    head, first, second, total = (
        line.split() for line in run.replace("the run", "run").replace(" GiB", "").splitlines()
    )
    place, hours, disk = head.index("price"), head.index("hours"), head.index("disk")
    assert total[0] == "all"
    assert float(first[place]) == pytest.approx(2e6 * float(first[hours]), abs=2e6 * 0.005)
    assert float(total[place]) == pytest.approx(float(first[place]) + float(second[place]), abs=2)
    assert float(total[disk]) == pytest.approx(float(first[disk]) + float(second[disk]), abs=0.2)


@pytest.mark.parametrize("name", ["arc_hunyuan_7b", "tiny_shorts"])
def test_the_tables_fit_a_terminal_of_80_columns(
    name: str,
) -> None:
    expect = {source: ExpectedSource(samples=99_000_000) for stage in planned_stages(load_recipe(name))
              for source in stage.config.data.sources}  # fmt: skip
    stages = planned_stages(load_recipe(name))
    machine = machine_of({"price": "99", "gpus": "2048"}, recipe=None)
    rows = [estimate(stage.config, machine=machine, expect=expect) for stage in stages]
    long = replace(rows[0], name="a_stage_with_a_very_long_name_of_its_own")
    lines = table([*rows, long], machine=machine).splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert sum("a_stage_with_a_very_lon~" in line for line in lines) == 3


def test_memory_alone_does_not_change_the_speed_and_says_so(shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_index(shard)
    words = [f"recipe={shard.parent / 'small.yaml'}", "gpus=1", "gpu_memory=24", "largest=no"]
    for more, told in ([], True), (["device=h100"], False):
        with pytest.raises(SystemExit):
            main([*words, *more])
        said = capsys.readouterr().out
        assert ("gpu_memory= changes the memory alone: speed is that of h200" in said) is told


def test_stages_that_fit_a_disk_one_by_one_must_fit_it_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [settings(f"stage={name}", f"run_dir={tmp_path}") for name in ("pretrain", "sft")]
    machine = machine_of({"device": "cpu"}, recipe=None)
    expect = {name: ExpectedSource(samples=10) for config in configs for name in config.data.sources}
    rows = [(config, estimate(config, machine=machine, expect=expect)) for config in configs]
    most = max(row.disk for _, row in rows)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=int(1.2 * most)))
    for config, row in rows:
        assert misfits(["stage=" + row.name], config=config, estimate=row, machine=machine) == []
    (told,) = full_together(rows)
    assert told.startswith("pretrain, sft together: 0.")
    assert "free in" in told
    assert "run_dir= on another disk" in told
    assert full_together(rows[:1]) == []


def test_given_names_of_a_recipe_are_taken_as_the_pipeline_takes_them(
    shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_index(shard)
    recipe = shard.parent / "small.yaml"
    recipe.write_text(
        recipe.read_text().replace(f"{shard.parent}/mine.tar", "$where/mine.tar") + "given: {where: nowhere}\n"
    )
    with pytest.raises(SystemExit) as done:
        main([f"recipe={recipe}", f"given.where={shard.parent}", "device=cpu"])
    assert done.value.code == 0
    assert "sft " in capsys.readouterr().out


def test_a_device_without_a_name_is_given_by_its_numbers() -> None:
    machine = machine_of(
        {"device": "ours", "peak_tflops": "400", "bandwidth_tb": "3", "gpu_memory": "120"}, recipe=None
    )
    assert (machine.peak, machine.bandwidth, machine.gpu_gib) == (400e12, 3e12, 120)
    with pytest.raises(ValueError, match=r"device=ours: .*peak_tflops=N bandwidth_tb=N gpu_memory=N"):
        machine_of({"device": "ours", "peak_tflops": "400"}, recipe=None)


def test_a_trace_takes_the_place_of_the_formula(shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_index(shard)
    found = []
    for trace in ("no", "yes"):
        with pytest.raises(SystemExit) as done:
            main([f"recipe={shard.parent / 'small.yaml'}", "device=cpu", "gpus=1", f"trace={trace}"])
        assert done.value.code == 0
        found.append(capsys.readouterr().out)
    assert "activ, rollout: traced" in found[1]
    assert "traced" not in found[0]


def test_a_trace_of_a_sampled_stage_counts_its_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("stage=grpo", "grpo.num_prompts=5", "data.sources.mine.shards=x.tar")
    row, tracing = fullest_row(config), Tracing()
    formula = memory(config, ranks=2, row=row)
    found = tracing.memory(formula, config=config, row=row, ranks=2)
    alone = trace_rollout(config, row=row, prompts=3)
    assert found.rollout == alone.peak - alone.features
    assert found.features == alone.features == formula.features > 0
    monkeypatch.setattr("arcvideo.preflight.tracing.trace_rollout", None)
    again = tracing.memory(formula, config=config, row=row, ranks=2)
    assert again == found, "a stage of the same shape shares the trace"


def test_a_trace_of_decoding_holds_the_room_of_all_completions() -> None:
    few, many = (
        trace_rollout(config, row=fullest_row(config), prompts=2)
        for config in (settings("stage=grpo", f"grpo.num_generations={count}") for count in (2, 10))
    )
    text = settings("stage=grpo").model.text
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.attention_head_dim * 4
    room = settings("stage=grpo").grpo.max_completion_length
    assert many.decoding - few.decoding >= 2 * 8 * room * token
    assert (many.prefill, many.encoding, many.features) == (few.prefill, few.encoding, few.features)


@pytest.mark.parametrize("stage", ["sft", pytest.param("grpo", marks=pytest.mark.slow)])
def test_the_largest_batch_runs_before_anything_has_trained(tmp_path: Path, stage: str) -> None:
    tiny = [f"run_dir={tmp_path}/none", "data.token_budget=600", "model.max_num_frame=2"]
    tiny.append("grpo.max_completion_length=20")
    told = run_largest(settings(f"stage={stage}", f"base={tmp_path}/no", *tiny))
    assert "the fullest row, with random weights" in told
    assert "fits cpu" in told


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
    ("gpus", "gib", "remedy"), [(8, 60, "engine=zero2"), (8, 40, "engine=zero3"), (1, 48, "engine=zero3_offload")]
)
def test_7b_on_too_small_a_device_names_what_would_fit(shard: Path, gpus: int, gib: int, remedy: str) -> None:
    build_index(shard)
    words = ["stage=sft", "model=arc_hunyuan_7b", "engine=zero1", "data.packs_per_step=8", f"run_dir={shard.parent}"]
    words += ["~data.sources", f"data.sources.mine.shards={shard}"]
    config = settings(*words)
    machine = Machine(device="a100", gpus=gpus, gpu_gib=gib)
    found = estimate(config, machine=machine)
    told = misfits(words, config=config, estimate=found, machine=machine)
    (line,) = [line for line in told if "on a device of" in line]
    assert line.endswith(f": {remedy}")


def test_a_finer_cut_needs_less_on_each_device() -> None:
    words = ["stage=sft", "model=arc_hunyuan_7b", "data.sources.mine.shards=x.tar"]
    assert 7.4e9 < parameters(settings(*words).model)["llm"] < 7.6e9
    engines = [settings(*words, f"engine=zero{zero}") for zero in (1, 2, 3)]
    needs = [memory(engine, ranks=8, row=fullest_row(engine)).total for engine in engines]
    assert needs == sorted(needs, reverse=True)


@pytest.mark.parametrize(
    "name",
    [
        "arc_hunyuan_7b",
        "arc_hunyuan_7b_8xh20",
        "arc_hunyuan_7b_8xa100",
        "arc_hunyuan_7b_8xh200",
        "arc_hunyuan_7b_1xh200",
        "arc_hunyuan_7b_1xh200_offload",
        "finetune_arc",
    ],
)
def test_every_7b_recipe_fits_the_machine_it_is_cut_for(name: str) -> None:
    recipe = load_recipe(name)
    machine = machine_of({}, recipe=recipe.machine)
    for stage in planned_stages(recipe):
        row = fullest_row(stage.config)  # the longest clip with its question
        assert memory(stage.config, ranks=machine.gpus, row=row).total < machine.room, stage.name
        assert host_memory(stage.config, ranks=machine.gpus) < machine.host_gib * (1 << 30), stage.name
        assert stage.config.data.packs_per_step % machine.gpus == 0
        assert stage.config.stage.objective != "grpo" or stage.config.grpo.num_prompts % machine.gpus == 0


def test_grpo_counts_keys_values_and_whole_weights_for_decoding() -> None:
    words = ["stage=grpo", "model=arc_hunyuan_7b", "data.sources.mine.shards=x.tar", "grpo.num_prompts=8"]
    row = fullest_row(settings(*words), longest=1000)
    cut, whole = (memory(settings(*words, f"engine=zero{zero}"), ranks=8, row=row) for zero in (3, 1))
    token = 2 * 32 * 8 * 128 * 2  # keys and values, layers, heads, width, bytes
    logits = 8 * settings(*words).model.text.vocab_size * (4 + 2 * 8)  # of a turn, in fp32 and twice in fp64
    assert whole.rollout == token * (1000 + 8 * 1024) + logits
    assert cut.rollout - whole.rollout == 2 * parameters(settings(*words).model)["llm"]
    other = memory(settings(*words, "engine=zero3", "stage.objective=next_token"), ranks=8, row=row)
    assert other.rollout == 0
    long = memory(settings(*words, "engine=zero1"), ranks=8, row=fullest_row(settings(*words)))
    assert long.rollout > token * (150 * 112 + 8 * 1024), "a layer at work holds more than completions"


def test_offloading_moves_states_to_the_host_but_for_the_gradients_of_zero2() -> None:
    words = ["stage=sft", "model=arc_hunyuan_7b", "data.sources.mine.shards=x.tar"]
    here, two, three = (settings(*words, f"engine={name}") for name in ("zero2", "zero2_offload", "zero3_offload"))
    row = fullest_row(here)
    on_device, second, third = (memory(config, ranks=1, row=row) for config in (here, two, three))
    assert second.optimizer == third.optimizer == third.gradients == 0
    assert second.gradients == on_device.gradients > 25 * (1 << 30)
    moved = host_memory(two, ranks=1) - host_memory(here, ranks=1)
    assert moved == pytest.approx(18 * trained_parameters(two), rel=0.05)


def test_ranks_but_one_read_half_the_bits() -> None:
    words = ["stage=sft", "model=arc_hunyuan_7b", "data.sources.mine.shards=x.tar", "engine=zero3"]
    half, whole = (host_memory(settings(*words, f"runner.precision={name}"), ranks=64) for name in ("bf16", "fp32"))
    assert whole - half == 63 * 2 * sum(parameters(settings(*words).model).values())


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
        ("devise=h200", r"devise: no such word \(did you mean 'device'\?\)"),
        ("utilisation=0.5", r"utilisation: no such word \(did you mean 'utilization'\?\)"),
        ("device=h20O", r"device=h20o: .*\(did you mean 'h20'\?\)"),
        ("runner.stps=3", r"runner.stps: no such setting \(did you mean 'runner.steps'\?\)"),
    ],
)
def test_a_wrong_word_is_told_with_its_key(shard: Path, word: str, told: str) -> None:
    with pytest.raises(SystemExit, match=told) as caught:
        main([f"recipe={shard.parent / 'small.yaml'}", word])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["arc_hunyuan_7b", "arc_hunyuan_7b_8xa100", "finetune_arc"])
def test_every_source_of_a_7b_recipe_has_expected_sizes(name: str) -> None:
    recipe = load_recipe(name)
    sources = {source for stage in planned_stages(recipe) for source in stage.config.data.sources}
    assert set(recipe.expect) == sources


def test_sizes_that_a_recipe_expects_stand_for_absent_shards_only(shard: Path) -> None:
    recipe = shard.parent / "small.yaml"
    text = recipe.read_text() + "expect: {mine: {samples: 70, seconds: 10}}\n"
    recipe.write_text(text)
    build_index(shard)
    there = preflight(shard.parent, "device=cpu", "gpus=1").stdout.splitlines()[1].split()
    assert (there[1], there[-1]) == ("20", "assumed")
    shard.unlink()
    absent = preflight(shard.parent, "device=cpu", "gpus=1", "data.token_budget=2048", "data.packs_per_step=4")
    assert (absent.returncode, absent.stderr) == (0, "")
    row = absent.stdout.splitlines()[1].split()
    tokens = 70 * (
        1 + 2 + 10 * (8 + 2) + 150
    )  # start, <vid> and </vid>, frames with <img> and </img>, an ordinary text
    assert (int(row[1]), float(row[2]), int(row[3]), row[-1]) == (
        70,
        float(f"{tokens:.3g}"),
        -(-tokens // 2048),
        "declared",
    )
    recipe.write_text(text.replace("samples: 70", "samples: 0"))
    refused = preflight(shard.parent)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "samples" in refused.stderr


def test_declared_prompts_are_those_of_shards_alike() -> None:
    recipe = load_recipe("arc_hunyuan_7b")
    (stage,) = [one for one in planned_stages(recipe) if one.name == "grpo"]
    found = volume(stage.config, expect=recipe.expect)
    assert found.samples == 135_000
    assert found.steps == 135_000 // stage.config.grpo.num_prompts * stage.config.grpo.num_iterations
    assert found.targets == 0
    # tokens of a prompt: the start, 40 frames of 114 tokens between <vid> and </vid>, a question with thoughts
    assert found.longest == 1 + 2 + 40 * 114 + 400
    assert found.tokens == found.samples * found.longest
    assert found.pairs == found.samples * Segment(length=found.longest).pairs


def test_preference_pairs_keep_and_ask_a_reference() -> None:
    words = ["model=arc_hunyuan_7b", "data.sources.mine.shards=x.tar"]
    pairs, alone = (settings(f"stage={name}", *words, "engine=zero2") for name in ("dpo", "sft"))
    weights = [memory(one, ranks=8, row=fullest_row(one)).weights for one in (pairs, alone)]
    assert weights[0] - weights[1] >= 2 * parameters(pairs.model)["llm"]
    adapted = settings("stage=dpo", *words, "engine=zero2", "lora.rank=16")
    assert memory(adapted, ranks=8, row=fullest_row(adapted)).weights < weights[0]
