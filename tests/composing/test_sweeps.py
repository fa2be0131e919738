"""Sweeps as a user types them: other launchers, a sweeper that searches, jobs that fail, jobs that are stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra.types import RunMode
from omegaconf import OmegaConf

from arcvideo.composing import sweep
from arcvideo.composing.plugins import plugin_problems, sweep_words
from arcvideo.composing.sweep import SweepJob, job_name, lower_is_better, parent_words, swept_keys
from arcvideo.lineage.manifest import write_manifest
from tests.compose import settings
from tests.conftest import SmallWorld
from tests.lineage.test_lineage import manifest
from tests.spawned import children, finished, running

ROOT = Path(__file__).resolve().parents[2]
MISSING = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("hydra_plugins.hydra_submitit", "hydra_plugins.hydra_optuna", "torch")):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
"""


def train(*words: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}" if path else str(ROOT)}
    command = [sys.executable, "-m", "arcvideo.train", *words]
    return finished(command, cwd=cwd, env=environment, seconds=900)


def short(small_world: SmallWorld, run_dir: Path) -> list[str]:
    """A stage of two steps, without an evaluation, judged by its last loss."""
    kept = [word for word in small_world.overrides if not word.startswith(("parent=", "runner.steps"))]
    return [*kept, f"run_dir={run_dir}", "runner.steps=2", "evaluation.shards=''", "evaluation.optimize=train/loss"]


def jobs(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(run_dir.glob("sweeps/*/[0-9]*/job.json"))]


LISTENER = """
from hydra.experimental.callback import Callback

class Listener(Callback):
    def on_job_end(self, config, job_return, **how):
        print("heard", job_return.status.name)
"""


@pytest.mark.parametrize("words", [["parent=/none"], ["-m", "parent=/none,/nothing"]], ids=["run", "sweep"])
def test_callbacks_of_hydra_hear_that_a_job_failed(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "listening.py").write_text(LISTENER)
    done = train(
        *words, "stage=sft", "+hydra.callbacks.mine._target_=listening.Listener", cwd=tmp_path, path=str(tmp_path)
    )
    heard = [line for line in done.stdout.splitlines() if line.startswith("heard")]
    assert heard == ["heard FAILED"] * (2 if "-m" in words else 1), done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("word", "package"),
    [("hydra/launcher=submitit_local", "hydra-submitit-launcher"), ("hydra/sweeper=optuna", "hydra-optuna-sweeper")],
)
def test_a_plugin_that_is_not_installed_is_one_line(tmp_path: Path, word: str, package: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(MISSING)
    done = train("-m", "stage=sft", word, "runner.steps=5,6", cwd=tmp_path, path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: {word} needs the package {package}: pip install 'arcvideo[sweep]'"


def test_a_launcher_outside_of_a_sweep_or_misspelt_is_told() -> None:
    assert plugin_problems(["stage=sft", "hydra/launcher=submitit_local"]) == [
        "hydra/launcher acts in sweeps only: add -m"
    ]
    (told,) = plugin_problems(["-m", "hydra/launcher=submitit_slrum"])
    assert "did you mean 'submitit_slurm'?" in told
    assert plugin_problems(["-m", "hydra/launcher=basic", "stage=sft"]) == []


def test_the_search_goes_where_the_metric_is_better_unless_told_otherwise() -> None:
    words = ["-m", "hydra/sweeper=optuna"]
    assert sweep_words(words, lower_is_better=lower_is_better("mcq_accuracy")) == ["hydra.sweeper.direction=maximize"]
    for metric in ("transcript_token_error", "train/loss"):
        assert sweep_words(words, lower_is_better=lower_is_better(metric)) == ["hydra.sweeper.direction=minimize"]
    assert sweep_words([*words, "hydra.sweeper.direction=maximize"], lower_is_better=True) == []


def test_parents_get_the_words_that_are_meant_for_them() -> None:
    told = ["stage=grpo", "++grpo.beta=0.1", "++model=tiny", "++parents.runner.steps=7", "++run_dir=x"]
    assert parent_words(told) == ["model=tiny", "parents.runner.steps=7", "run_dir=x", "runner.steps=7"]


@pytest.mark.parametrize(
    ("evaluation", "status", "started"),
    [("", 0, True), ("", 1, True), ("1f", 0, False)],
    ids=["killed", "broken", "done"],
)
def test_a_parent_that_was_killed_before_it_was_measured_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, evaluation: str, status: int, started: bool
) -> None:
    config = settings("stage=pretrain", f"run_dir={tmp_path}")
    (tmp_path / "audio_warmup").mkdir()
    write_manifest(manifest(evaluation=evaluation), folder=tmp_path / "audio_warmup")
    commands: list[list[str]] = []
    monkeypatch.setattr(sweep, "search_words", list)
    monkeypatch.setattr(sweep, "run_child", lambda command: commands.append(command) or status)
    sweep.train_parents(config, overrides=[], chosen={"model": "tiny", "stage": "pretrain"})
    assert [word for command in commands for word in command if word.startswith("stage=")] == (
        ["stage=audio_warmup"] * started
    )


def test_a_parent_that_is_told_to_stop_while_it_is_measured_stops_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = settings("stage=pretrain", f"run_dir={tmp_path}")
    (tmp_path / "audio_warmup").mkdir()
    write_manifest(manifest(evaluation=""), folder=tmp_path / "audio_warmup")
    monkeypatch.setattr(sweep, "search_words", list)
    monkeypatch.setattr(sweep, "run_child", lambda command: 85)
    with pytest.raises(SystemExit) as stopped:
        sweep.train_parents(config, overrides=[], chosen={"model": "tiny", "stage": "pretrain"})
    assert stopped.value.code == 85


def test_the_slurm_launcher_composes_and_saves_before_the_limit(tmp_path: Path) -> None:
    shown = train("stage=sft", "-m", "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=4", "--cfg", "hydra",
                  cwd=tmp_path)  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    launcher = yaml.safe_load(shown.stdout)["hydra"]["launcher"]
    assert launcher["_target_"].endswith("SlurmLauncher")
    assert (launcher["gpus_per_node"], launcher["signal_delay_s"]) == (4, 300)
    assert launcher["max_num_timeout"] > 0


@pytest.mark.slow
def test_optuna_searches_by_the_value_of_each_stage(tmp_path: Path, small_world: SmallWorld) -> None:
    done = train("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1",
                 "stage=audio_warmup", "optimizer.muon_lr=interval(1e-4,1e-2)", *short(small_world, tmp_path),
                 cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = jobs(tmp_path)
    values = [float(str(job["value"])) for job in found]
    assert len({job["overrides"]["optimizer.muon_lr"] for job in found}) == 3  # type: ignore[index]
    (result,) = tmp_path.glob("sweeps/*/optimization_results.yaml")
    assert yaml.safe_load(result.read_text())["best_value"] == pytest.approx(min(values))
    table = json.loads((result.parent / "sweep.json").read_text())
    assert [job["value"] for job in table["jobs"]] == sorted(values)


def said_in(folder: Path) -> str:
    """What a job of submitit has written; the lines of the steps go to its stderr."""
    return "".join(path.read_text() for path in sorted(folder.glob("*_log.*")))


@pytest.mark.slow
def test_jobs_as_processes_share_parents_and_one_that_fails_leaves_the_others(
    tmp_path: Path, small_world: SmallWorld
) -> None:
    few = ["parents.runner.steps=2", "parents.data.token_budget=1024", "parents.schedule.warmup_steps=1",
           "parents.evaluation.shards=''", "parents.evaluation.optimize=train/loss"]  # fmt: skip
    swept = ["stage=pretrain", "runner.seed=1,2", "data.token_budget=1024,40"]
    kept = [word for word in short(small_world, tmp_path) if "token_budget" not in word]
    done = train("-m", "hydra/launcher=submitit_local", *swept, *few, *kept, cwd=tmp_path)
    found = jobs(tmp_path)
    assert [job["value"] is not None for job in found] == [True, False] * 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.returncode == 1
    assert "data.token_budget" in done.stderr
    assert "Traceback" not in done.stderr
    said = "".join(map(said_in, tmp_path.glob("sweeps/*/.submitit/[0-9]*")))
    assert len(list(tmp_path.glob("audio_warmup/manifest.json"))) == 1
    trained = [line for line in said.splitlines() if re.match(r"step 2/2 ", line)]
    assert len(trained) == 3, "one parent and two jobs"


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_saves_and_is_queued_again(tmp_path: Path, small_world: SmallWorld) -> None:
    words = [word for word in short(small_world, tmp_path) if not word.startswith("runner.steps")]
    command = [sys.executable, "-m", "arcvideo.train", "-m", "hydra/launcher=submitit_local", "stage=audio_warmup",
               "runner.steps=60", *words]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with running(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as sweep:
        deadline = time.monotonic() + 600
        while not (started := [folder for folder in tmp_path.glob("sweeps/*/.submitit/[0-9]*")
                               if "step 2/60" in said_in(folder)]):  # fmt: skip
            assert sweep.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (task,) = children(int(started[0].name))
        os.kill(task, signal.SIGUSR1)
        assert sweep.wait(600) == 0
    said = said_in(started[0])
    assert "Requeued job" in said
    (job,) = jobs(tmp_path)
    assert job["value"] is not None
    steps = [int(number) for number in re.findall(r"^step (\d+)/60 ", said, flags=re.MULTILINE)]
    assert steps == list(range(1, 61)), "no step is lost or trained twice"


def test_a_job_is_named_by_what_is_swept_and_told_apart_by_the_rest() -> None:
    words = {"stage": "grpo", "run_dir": "x", "grpo.beta": "0.1", "runner.steps": "5"}
    name = job_name("grpo", overrides=words, swept=["grpo.beta"])
    assert re.fullmatch(r"grpo,grpo\.beta=0\.1-[0-9a-f]{8}", name)
    assert job_name("grpo", overrides=words, swept=["grpo.beta"]) == name
    assert job_name("grpo", overrides={**words, "runner.steps": "6"}, swept=["grpo.beta"]) != name
    assert job_name("grpo", overrides={**words, "run_dir": "y"}, swept=["grpo.beta"]) == name
    assert swept_keys(["-m", "stage=grpo", "++grpo.beta=0,0.1", "optimizer.lr=interval(1e-4,1e-2)", "a=[1,2]"]) == [
        "grpo.beta",
        "optimizer.lr",
    ]


def test_a_folder_of_jobs_that_somebody_chose_holds_the_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = settings("stage=sft", f"run_dir={tmp_path}/runs")
    hydra = OmegaConf.create(
        {
            "mode": "MULTIRUN",
            "overrides": {"task": ["stage=sft", "runner.seed=1"]},
            "runtime": {"output_dir": f"{tmp_path}/sweep/3", "choices": {"hydra/sweeper": "basic"}},
        }
    )
    hydra.mode = RunMode.MULTIRUN
    monkeypatch.setenv("ARCVIDEO_SWEPT", "runner.seed")
    for placed, folder in (("1", "sweep/3"), ("", "runs/sft,runner.seed=1")):
        monkeypatch.setenv("ARCVIDEO_SWEEP_PLACED", placed)
        job = SweepJob.of(hydra, config=config)
        assert job is not None
        assert job.config.stage_dir == tmp_path / folder
