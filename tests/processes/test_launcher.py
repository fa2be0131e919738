"""Where a process stands among those that a launcher started."""

from __future__ import annotations

import pytest

from arcvideo.lineage.lock import launch
from arcvideo.processes.launcher import first_host, launch_variables


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


def test_what_ranks_agree_on_follows_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert launch()[:2] == (0, 1)  # a bare batch script
    for name, value in slurm(1).items():
        monkeypatch.setenv(name, value)
    assert launch() == (1, 2, "n1 20001  40001")
