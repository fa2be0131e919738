"""Taking a place among the processes of a run."""

from __future__ import annotations

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


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="speaks of machines whose GPU torch cannot use")
def test_a_gpu_that_torch_cannot_use_is_an_error_and_not_a_run_on_the_cpu(tmp_path: Path) -> None:
    _refuse_idle_gpus(tmp_path, visible=None)
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(ValueError, match=r"has GPUs \(nvidia0\), but torch cannot use them.*CUDA_VISIBLE_DEVICES="):
        _refuse_idle_gpus(tmp_path, visible=None)
    for asked in ("", "-1"):
        _refuse_idle_gpus(tmp_path, visible=asked)
