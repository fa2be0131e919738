"""`python -m arcvideo.train` as a user types it: what is wrong is one clear line, told before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arcvideo import train as train_module
from arcvideo.composing.config import plain_dict
from arcvideo.composing.overrides import merge_notes
from arcvideo.lineage.manifest import Manifest, write_manifest
from arcvideo.lineage.parents import Parent
from arcvideo.lineage.state import State
from arcvideo.places import writable
from arcvideo.processes import lifesign
from arcvideo.shards.write import write_shards
from tests.compose import settings
from tests.data import build

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which importing torch fails loudly."""
    folder = tmp_path_factory.mktemp("fake")
    (folder / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def train(*words: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "arcvideo.train", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["stage=stf"],
            ["stage=stf", "did you mean 'sft'", "audio_warmup, cold_start, dpo, final_sft, grpo, pretrain, sft"],
        ),
        (["stage=sft", "runner.stepz=3"], ["runner.stepz", "did you mean 'runner.steps'"]),
        (["stage=sft", "grpo.beta=abc"], ["grpo.beta", "a number", "'abc'"]),
        (
            ["stage=grpo", "grpo.rewards={mcq_acuracy: 1}"],
            ["mcq_acuracy is unknown", "did you mean 'mcq_accuracy'", "'package.module:function'"],
        ),
        (["stage=grpo", "grpo.beta=range(0", "-m"], ["grpo.beta=range(0", "cannot be read"]),
        (["stage=grpo", "grpo.beta=range(0,1,0)", "-m"], ["grpo.beta=range(0,1,0)", "no values"]),
        (["stage=sft", "runner.seed=range(5,1)", "-m"], ["runner.seed=range(5,1)", "no values"]),
        (["stage=sft", "engine=zero9"], ["engine=zero9", "zero0, zero1, zero2,"]),
        (["stage=sft", "engine=zero1"], ["optimizer.name=muon", "engine=zero0"]),
        (["stage=sft"], ["sft needs pretrain", "has not run", "python -m arcvideo.train stage=pretrain"]),
        (["stage=sft", "parent=elsewhere"], ["parent=elsewhere", "no config.json"]),
        (
            ["stage=audio_warmup", "base=nowhere"],
            ["base=nowhere", "no config.json", "python -m arcvideo.synthetic.base"],
        ),
        (["stage=sft", "data_dir=${nope}"], ["nope"]),
        (["stage=sft", "run_dir=/dev/null/runs"], ["run_dir=/dev/null/runs", "cannot be written"]),
        (["stage=sft", "run_dir=/dev/null/runs", "runner.seed=0,1", "-m"], ["run_dir=/dev/null/runs"]),
        (["sft"], ["sft: expected KEY=VALUE", "did you mean 'stage=sft'"]),
        (["stage=sft,grpo"], ["stage=sft,grpo", "add -m"]),
        (["stage=sft", "~data.sources.nope"], ["data.sources.nope", "does not exist"]),
        (["stage=sft", "data.sources.mine={shards:x"], ["{shards:x"]),
        (["stage=grpo", r"grpo.rewards={nowhere\:f: 1}"], ["'nowhere:f'", "no module named 'nowhere'"]),
        (["stage=grpo", r"grpo.rewards={json\:dumpz: 1}"], ["has no 'dumpz'", "did you mean 'dump"]),
        (["stage=sft", "stage.objective=json:Nothing"], ["stage.objective", "has no 'Nothing'"]),
        (["stage=grpo", "grpo.sampler=nowhere:S"], ["grpo.sampler", "no module named 'nowhere'"]),
        (["stage=sft", "data.sources.tiny_shorts.tasks={qaa: 1}"], ["data.sources.tiny_shorts.tasks", "'qa'"]),
        (["stage=grpo", "grpo.task_rewards={qaa: {format: 1}}"], ["grpo.task_rewards", "'qa'"]),
        (["stage=sft", "lora.rank=2", "lora.targets=[q_pro]"], ["lora.targets", "there are", "qkv_proj"]),
        (["stage=sft", "optimizer.module_lrs={llm: 0.1}"], ["optimizer.module_lrs.llm", "optimizer.lr_factors.llm"]),
        (["stage=sft", "optimizer.module_lrs={vit: 1e-4}"], ["optimizer.module_lrs.vit", "does not learn"]),
        (["stage=sft", "data.sources.x={shards: a, style: thinkk}"], ["data.sources.x.style='thinkk'", "plain, think"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_one_line_before_torch(
    tmp_path: Path, without_torch: dict[str, str], words: list[str], told: list[str]
) -> None:
    done = train(*words, cwd=tmp_path, env=without_torch)
    assert done.returncode != 0
    said = (done.stderr + done.stdout).strip()
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert [part for part in told if part not in said] == []


def test_a_task_that_no_reward_reads_is_told_with_the_reward_that_does() -> None:
    words = ["stage=grpo", "~grpo.rewards", "grpo.rewards={mcq_accuracy: 1}"]
    with pytest.raises(ValueError, match=r"tasks\.grounding: no reward of grpo\.rewards.*add temporal_iou"):
        settings(*words)
    settings(*words, "~data.sources.tiny_shorts.tasks", "data.sources.tiny_shorts.tasks={mcq: 1}")


def test_ranks_that_cannot_share_a_step_and_places_that_cannot_be_written_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = write_shards(build.records(1), out=tmp_path / "data")
    shards = {"data.sources.mine": [shard]}
    config = settings("stage=sft", "data.packs_per_step=3", f"run_dir={tmp_path}/runs")
    train_module._check_places(config, shards=shards, ranks=3)
    with pytest.raises(ValueError, match=r"data\.packs_per_step=3 is not a multiple of 2 ranks"):
        train_module._check_places(config, shards=shards, ranks=2)
    (tmp_path / "file").write_text("")
    config = settings("stage=sft", f"run_dir={tmp_path}/file/runs")
    with pytest.raises(ValueError, match=r"run_dir=.*cannot be written"):
        train_module._check_places(config, shards=shards, ranks=1)
    for place in ("/proc", "/proc/none/runs", "/sys/none"):  # root may write there, says the mode
        assert not writable(Path(place)), place
    assert writable(tmp_path / "new" / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file"]
    readonly = {str(shard.parent)}
    monkeypatch.setattr(train_module, "writable", lambda folder: str(folder) not in readonly)
    config = settings("stage=sft", f"run_dir={tmp_path}/runs")
    with pytest.raises(ValueError, match=r"data\.sources\.mine: the index of .*data\.index_dir=DIR"):
        train_module._check_places(config, shards=shards, ranks=1)
    config = settings("stage=sft", f"run_dir={tmp_path}/runs", f"data.index_dir={tmp_path}/indexes")
    train_module._check_places(config, shards=shards, ranks=1)


def test_a_mapping_that_adds_to_the_page_says_so_and_how_to_replace_it() -> None:
    added = ["stage=grpo", "grpo.rewards={format: 1.0}"]
    (note,) = merge_notes(added, config=settings(*added))
    assert note.startswith("grpo.rewards: mcq_accuracy, temporal_iou")
    assert "'~grpo.rewards'" in note
    replaced = ["stage=grpo", "~grpo.rewards", "grpo.rewards={format: 1.0}"]
    config = settings(*replaced)
    assert config.grpo.rewards == {"format": 1.0}
    assert merge_notes(replaced, config=config) == []


def test_missing_data_is_told_before_torch(tmp_path: Path, without_torch: dict[str, str]) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    done = train("stage=audio_warmup", "base=base", "data_dir=nowhere", cwd=tmp_path, env=without_torch)
    assert done.returncode != 0
    assert "error: data.sources.tiny_shorts.shards='nowhere/train-*.tar': no such tar file" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_stage_the_stages_are_listed(tmp_path: Path, without_torch: dict[str, str]) -> None:
    done = train(cwd=tmp_path, env=without_torch)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    said = done.stderr + done.stdout
    assert [stage for stage in ("audio_warmup", "cold_start", "final_sft", "grpo") if stage not in said] == []


@pytest.mark.parametrize("words", [["--help"], ["stage=sft", "--help"], ["stage=grpo", "--cfg", "job"]], ids=" ".join)
def test_help_and_settings_are_shown_without_torch(
    tmp_path: Path, without_torch: dict[str, str], words: list[str]
) -> None:
    done = train(*words, cwd=tmp_path, env=without_torch)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stage" in done.stdout
    assert "cold_start" in done.stdout


def test_a_parent_that_was_interrupted_is_told_from_one_that_never_ran(
    tmp_path: Path, without_torch: dict[str, str]
) -> None:
    (tmp_path / "runs" / "pretrain").mkdir(parents=True)
    done = train("stage=sft", "run_dir=runs", cwd=tmp_path, env=without_torch)
    assert "has not finished" in done.stderr


def test_a_sweep_is_told_the_same_mistake(tmp_path: Path, without_torch: dict[str, str]) -> None:
    done = train("-m", "stage=sft", "runner.steps=many,5", cwd=tmp_path, env=without_torch)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_the_flag_of_a_sweep_may_stand_between_the_words(tmp_path: Path, without_torch: dict[str, str]) -> None:
    done = train("stage=sft", "-m", "runner.steps=50,60", cwd=tmp_path, env=without_torch)
    assert "parent first: -m arcvideo.train stage=pretrain" in done.stdout
    assert "base=runs/tiny_shorts/base is not a folder of weights" in done.stderr


def test_a_full_disk_is_one_line_naming_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fills_the_disk(*_: object, **__: object) -> None:
        Path("/dev/full").write_text("a step")

    config = settings("stage=sft", f"run_dir={tmp_path}")
    monkeypatch.setattr("arcvideo.stage.run_stage", fills_the_disk)
    parent = Parent(path=tmp_path, identity="0")
    with pytest.raises(ValueError, match="No space left on device; make room") as told:
        train_module._act(config, parent=parent, state=State(word="new"), word="new")
    assert str(told.value).startswith(str(config.stage_dir))
    assert "fills_the_disk" in (config.stage_dir / "error-0.txt").read_text()


def test_the_traceback_of_an_earlier_error_is_gone_once_the_stage_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("stage=sft", f"run_dir={tmp_path}")
    parent = Parent(path=tmp_path, identity="0")
    folder = config.stage_dir

    def fails(*_: object, **__: object) -> None:
        raise ValueError("a wrong setting")

    def ends(*_: object, **__: object) -> None:
        manifest = Manifest(
            stage="sft", identity="0" * 64, parent="x", parent_path="x", code={}, data="x", config=plain_dict(config)
        )
        write_manifest(manifest, folder=folder)

    monkeypatch.setattr("arcvideo.stage.run_stage", fails)
    with pytest.raises(ValueError, match="a wrong setting"):
        train_module._act(config, parent=parent, state=State(word="new"), word="new")
    other = folder / "error-3.txt"  # of a job with more ranks
    other.write_text("before")
    assert (folder / "error-0.txt").exists()
    for path in (other, folder / "error-0.txt"):
        os.utime(path, (1, 1))
    monkeypatch.setattr("arcvideo.stage.run_stage", ends)
    train_module._act(config, parent=parent, state=State(word="interrupted"), word="interrupted")
    assert not list(folder.glob("error-*.txt"))


def test_a_stage_that_is_silent_for_long_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def waits(*_: object, **__: object) -> None:
        while "working: loading torch, for " not in capsys.readouterr().err:
            time.sleep(0.01)

    monkeypatch.setattr("arcvideo.stage.run_stage", waits)
    monkeypatch.setattr(lifesign, "SILENCE_SECONDS", 0.05)
    config, parent = settings("stage=sft", f"run_dir={tmp_path}"), Parent(path=tmp_path, identity="0")
    train_module._act(config, parent=parent, state=State(word="new"), word="new")
