"""Taking a place among the processes of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arcvideo.processes.ranks import _refuse_idle_gpus
from tests.runner.job import ROOT

_PATIENCE = """
import sys
import torch.distributed as dist
from arcvideo.processes.ranks import join
started = dist.init_process_group
def noted(*words, timeout, **more):
    print(int(timeout.total_seconds()))
    return started(*words, timeout=timeout, **more)
dist.init_process_group = noted
join(hang_seconds=float(sys.argv[1]))
"""


@pytest.mark.parametrize(("hang", "patience"), [(60.0, 3600), (4000.0, 8000)])
def test_collectives_wait_longer_than_the_watchdog(hang: float, patience: int) -> None:
    command = [sys.executable, "-c", _PATIENCE, str(hang)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout.split()[-1]) == patience > hang


_BOUND = """
import torch
import torch.distributed as dist
from arcvideo.processes.ranks import join
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 4
torch.cuda.set_device = lambda device: None
dist.init_process_group = lambda backend, **more: print(backend, more["device_id"])
join(hang_seconds=60.0)
"""


def test_on_gpus_a_rank_is_bound_to_its_device_from_the_start() -> None:
    """Else NCCL guesses the device at the first collective, and a wrong guess hangs."""
    words = {"RANK": "0", "LOCAL_RANK": "3", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _BOUND], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True,
        env=os.environ | words,
    )  # fmt: skip
    assert done.stdout.split() == ["nccl", "cuda:3"]


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="speaks of machines whose GPU torch cannot use")
def test_a_gpu_that_torch_cannot_use_is_an_error_and_not_a_run_on_the_cpu(tmp_path: Path) -> None:
    _refuse_idle_gpus(tmp_path, visible=None)
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(ValueError, match=r"has GPUs \(nvidia0\), but torch cannot use them.*CUDA_VISIBLE_DEVICES="):
        _refuse_idle_gpus(tmp_path, visible=None)
    for asked in ("", "-1"):
        _refuse_idle_gpus(tmp_path, visible=asked)
