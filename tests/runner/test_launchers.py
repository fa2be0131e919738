"""A run finds its place from whatever started it: nothing, torchrun, the deepspeed launcher, Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arcvideo.runner.ranks import first_host, launch_variables
from tests.runner.job import ROOT, ended, free_port, start_ranks

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu7", "gpu7"),
        ("gpu[03-05,9],login1", "gpu03"),
        ("rack[1-2]n[04,7]", "rack1n04"),
        ("a-1,b-2", "a-1"),
        ("10.0.0.3", "10.0.0.3"),
        ("node-[0010-0012].cluster", "node-0010.cluster"),
    ],
)
def test_the_first_host_of_a_slurm_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def slurm(rank: int, *, tasks: int = 2, nodes: str = "n[1-2]", **more: str) -> dict[str, str]:
    """What srun tells a task."""
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NODELIST": nodes}
    common = {"SLURM_NTASKS": str(tasks), "SLURM_JOB_ID": "40001", "SLURM_NODELIST": nodes}
    return common | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} | more


def test_slurm_tasks_meet_on_the_first_host_at_a_port_of_the_job() -> None:
    assert launch_variables(slurm(1)) == {
        "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "20001",
    }  # fmt: skip


def test_a_bare_batch_script_of_many_tasks_is_one_process() -> None:
    batch = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_NODELIST": "n1"}
    assert launch_variables(batch)["WORLD_SIZE"] == "1"


def test_what_torchrun_says_counts_inside_a_slurm_job() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    assert launch_variables(slurm(0) | torchrun) == {}


def test_slurm_without_hosts_is_an_error_that_says_what_to_export() -> None:
    environment = {key: value for key, value in slurm(0).items() if "NODELIST" not in key}
    with pytest.raises(ValueError, match="export MASTER_ADDR"):
        launch_variables(environment)


def test_ranks_with_slurm_variables_alone_train_together(tmp_path: Path) -> None:
    plain = {key: value for key, value in os.environ.items() if key not in PLACE} | {"OMP_NUM_THREADS": "1"}
    # The port follows from the job's number: one that is free now.
    job = next(port - 20000 for port in iter(free_port, None) if 20000 <= port < 40000)
    told = [plain | slurm(rank, nodes="127.0.0.1", SLURM_JOB_ID=str(job)) for rank in range(2)]
    task = {"folder": str(tmp_path / "run"), "stage": 2, "steps": 2, "liveness": False}
    processes = start_ranks([task], ranks=2, results=tmp_path / "results.json", environments=told)
    texts = ended(processes, seconds=240)
    assert [process.returncode for process in processes] == [0, 0], texts
    assert len(json.loads((tmp_path / "results.json").read_text())[0]["metrics"]) == 2


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_ranks_that_train_together(tmp_path: Path) -> None:
    plain = {key: value for key, value in os.environ.items() if key not in PLACE}
    plain |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    task = {"folder": str(tmp_path / "run"), "stage": 3, "steps": 2, "liveness": False}
    launcher = Path(sys.executable).parent / "deepspeed"
    command = [str(launcher), "--num_gpus", "2", "--master_port", str(free_port()), "--module", "tests.runner.job"]
    done = subprocess.run(
        [*command, json.dumps([task]), str(tmp_path / "results.json")],
        cwd=ROOT, env=plain, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads((tmp_path / "results.json").read_text())[0]["metrics"]) == 2
