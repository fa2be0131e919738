"""launch/: what a machine reads parses, and no hyper-parameter hides there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from arcvideo.runner.signals import REQUEUE_EXIT_CODE

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
FILES = sorted(LAUNCH.iterdir())
SHELL = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
YAML = [path for path in FILES if path.suffix == ".yaml"]


def name(path: Path) -> str:
    return path.name


def test_every_file_is_a_kind_that_is_checked() -> None:
    assert SHELL
    assert YAML
    assert sorted([*SHELL, *YAML]) == FILES


@pytest.mark.parametrize("path", SHELL, ids=name)
def test_shell_scripts_parse_and_can_be_run(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False).stderr == ""
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize("path", YAML, ids=name)
def test_yaml_files_parse_and_their_scripts_too(path: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    assert content
    for script in (content.get("setup", ""), content.get("run", "")):
        assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_hyper_parameter_stands_in_a_launch_file(path: Path) -> None:
    code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
    assert not re.search(r"\b(optimizer|schedule|runner|grpo|data|model|engine)[.=]\w", code)


@pytest.mark.parametrize(("status", "requeued"), [(REQUEUE_EXIT_CODE, True), (1, False), (0, False)])
def test_slurm_queues_a_preempted_job_again_and_no_other(tmp_path: Path, status: int, requeued: bool) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "srun").write_text(f"#!/bin/sh\nexit {status}\n")
    (tmp_path / "scontrol").write_text(
        f'#!/bin/sh\ncase "$1" in requeue) echo "$2" > {asked};; *) echo node-1;; esac\n'
    )
    for program in ("srun", "scontrol"):
        (tmp_path / program).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node-1", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sbatch"), "stage=sft"], env=environment, check=False)
    assert done.returncode == status
    assert asked.exists() == requeued
