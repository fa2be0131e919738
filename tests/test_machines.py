"""The matrix of CPU capabilities and thread counts that `make machines` runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import machines

SHOWS = """
import os
def test_environment():
    told = os.environ["ATEN_CPU_CAPABILITY"], os.environ["OMP_NUM_THREADS"], os.environ["MKL_ENABLE_INSTRUCTIONS"]
    assert told == ("default", "2", "SSE4_2")
"""


def test_a_capability_that_the_processor_lacks_is_left_out() -> None:
    def named(best: str) -> list[tuple[str, int, int]]:
        groups = machines.cells(capabilities=list(machines.CAPABILITIES), threads=[1, 4], copies=2, best=best)
        assert all(len(group) == 2 for group in groups)
        return [(group[0].capability, group[0].threads, group[1].copy) for group in groups]

    assert named("default") == [("default", 1, 2), ("default", 4, 2)]
    assert [name for name, *_ in named("avx2")] == ["default", "default", "avx2", "avx2"]
    assert len(named("avx512")) == 6


def test_the_best_capability_is_what_torch_uses_when_nobody_holds_it_down() -> None:
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    best = machines.best_capability()
    held = {**os.environ, "ATEN_CPU_CAPABILITY": best}
    told = subprocess.run([sys.executable, "-c", code], env=held, capture_output=True, text=True, check=True).stdout
    assert told.strip().lower() == best


@pytest.mark.slow
def test_a_cell_runs_under_its_own_kernels_and_threads_and_a_failure_decides_the_status(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_shows.py").write_text(SHOWS)
    words = ["--capabilities=default", "-p", "no:randomly", f"--rootdir={tmp_path}", str(tmp_path / "test_shows.py")]
    assert machines.main(["--threads=2", "--copies=2", *words]) == 0
    said = capfd.readouterr().out
    assert [line.split()[:5] for line in said.splitlines() if line.startswith("default ")] == [
        ["default", "2", "1", "1", "0"], ["default", "2", "2", "1", "0"],
    ]  # fmt: skip
    assert machines.main(["--threads=1 2", *words]) == 1
    said = capfd.readouterr().out
    assert "FAILED (exit status 1)" in said
    assert "default, 1 threads: test_shows::test_environment" in said
    assert "default, 2 threads: test_shows" not in said


def test_an_unknown_capability_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        machines.main(["--capabilities=avx1024"])
    assert "avx1024: choose from default, avx2, avx512" in capsys.readouterr().err
