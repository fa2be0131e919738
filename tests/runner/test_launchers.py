"""A run finds its place from whatever started it: nothing, torchrun, the deepspeed launcher, Slurm."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.processes.test_launcher import slurm
from tests.runner.job import ROOT, ended, start_ranks
from tests.spawned import finished, free_port

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.slow
def test_ranks_with_slurm_variables_alone_train_together(tmp_path: Path) -> None:
    plain = {key: value for key, value in os.environ.items() if key not in PLACE} | {"OMP_NUM_THREADS": "1"}
    # The port follows from the job's number: one that is free now.
    job = next(port - 20000 for port in iter(free_port, None) if 20000 <= port < 40000)
    told = [plain | slurm(rank, nodes="127.0.0.1", SLURM_JOB_ID=str(job)) for rank in range(2)]
    task = {"folder": str(tmp_path / "run"), "stage": 2, "steps": 2, "liveness": False}
    processes = start_ranks([task], ranks=2, results=tmp_path / "results.json", environments=told)
    texts = ended(processes, seconds=600)
    assert [process.returncode for process in processes] == [0, 0], texts
    assert len(json.loads((tmp_path / "results.json").read_text())[0]["metrics"]) == 2


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_ranks_that_train_together(tmp_path: Path) -> None:
    plain = {key: value for key, value in os.environ.items() if key not in PLACE}
    plain |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    task = {"folder": str(tmp_path / "run"), "stage": 3, "steps": 2, "liveness": False}
    launcher = Path(sys.executable).parent / "deepspeed"
    command = [str(launcher), "--num_gpus", "2", "--master_port", str(free_port()), "--module", "tests.runner.job"]
    command += [json.dumps([task]), str(tmp_path / "results.json")]
    done = finished(command, cwd=ROOT, env=plain, seconds=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads((tmp_path / "results.json").read_text())[0]["metrics"]) == 2
