"""examples/own_project: what another package brings by entry points is used without a change here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arcvideo.shards.write import Record, write_shards
from tests.conftest import SmallWorld
from tests.data import build

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "own_project"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example is installed into."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "own_project")  # a build writes beside it
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--target", str(folder), str(source),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def train(*words: str, installed: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(installed)))}
    command = [sys.executable, "-m", "arcvideo.train", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=900, check=False)


def test_its_stage_and_names_are_known_once_it_is_installed(installed: Path, tmp_path: Path) -> None:
    shown = train("stage=counting", "--cfg", "job", installed=installed, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "counts_nearly: 0.5" in shown.stdout
    typo = train("stage=counting", "grpo.sampler=nosted", installed=installed, cwd=tmp_path)
    assert "did you mean 'noted'" in typo.stderr
    other = train(
        "stage=sft",
        "stage.objective=focal",
        "stage.options.gamma=2.0",
        "--cfg",
        "job",
        installed=installed,
        cwd=tmp_path,
    )
    assert other.returncode == 0, other.stderr
    words = ("evaluation.metrics=[counting_accuracy,brief]", "evaluation.optimize=brief")
    measured = train("stage=counting", *words, "--cfg", "job", installed=installed, cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    typo = train("stage=counting", "logger.callbacks=[dairy]", installed=installed, cwd=tmp_path)
    assert "logger.callbacks: 'dairy'" in typo.stderr
    assert "did you mean 'diary'" in typo.stderr


def test_its_benchmark_is_read_by_name(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(build.mp4(1.0, shade=1))
    rows = [{"name": "a", "file": "clip.mp4", "question": "How many?", "count": 3},
            {"name": "b", "file": "gone.mp4", "question": "How many?", "count": 3}]  # fmt: skip
    (tmp_path / "counts.json").write_text(json.dumps(rows))
    code = (
        "from pathlib import Path; from arcvideo.bench import read_bench; found = read_bench('counts', Path('.'));"
        "print(found.name, [one.fields['count'] for one in found.items], [one.id for one in found.holes])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(installed)))}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "counts [3] ['b']", done.stderr
    wrong = code.replace("'counts'", "'count'")
    done = subprocess.run([sys.executable, "-c", wrong], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "bench=count: no such benchmark (did you mean 'counts'" in done.stderr


@pytest.mark.slow
def test_its_task_reward_sampler_and_logger_train_a_stage(
    installed: Path, small_world: SmallWorld, tmp_path: Path
) -> None:
    item = {"task": "counting", "question": "How many?", "count": 3, "tolerance": 1}
    records = [
        Record(key=f"clip-{number}", content={"items": [item]}, media={"mp4": build.mp4(1.0, shade=number)})
        for number in range(4)
    ]
    write_shards(records, out=tmp_path / "data", name="counting")
    words = [word for word in small_world.overrides if not word.startswith(("data_dir", "runner.steps"))]
    done = train(
        "stage=counting", *words, f"data_dir={tmp_path}/data", f"run_dir={tmp_path}/runs", "runner.steps=2",
        "grpo.num_prompts=2", "grpo.num_generations=2", "grpo.max_completion_length=4", "runner.liveness_scan=1",
        "grpo.require_reward_spread=false", f"evaluation.shards={tmp_path}/data/*.tar", "runner.save_every=0",
        "evaluation.metrics=[counting_accuracy,brief]", "evaluation.optimize=brief", "data.overlap=allow",
        installed=installed, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stage = tmp_path / "runs" / "counting"
    assert done.stdout.count("noted sampler: 4 completions") == 2
    rows = ["0", "1", "end", "end"]  # opened again for what is measured behind the last step
    assert [line.split(",")[0] for line in (stage / "losses.csv").read_text().splitlines()] == rows
    assert (stage / "diary.txt").read_text().splitlines() == [
        "begin counting", "step 0", "step 1", "checkpoint 2 step-2", "evaluation 2 brief counting_accuracy", "end 0",
    ]  # fmt: skip
    row = json.loads((stage / "metrics.jsonl").read_text().splitlines()[0])
    assert {"train/rewards/counting_accuracy/mean", "train/rewards/counts_nearly/mean"} <= row.keys()
    code = json.loads((stage / "manifest.json").read_text())["code"]
    assert {"own_project.rewards", "own_project.samplers", "own_project.tasks"} <= code.keys()
