"""The place of this process among those that a launcher started; read before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping


def launch_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what to add to the environment so that torch.distributed finds its place.

    torchrun and the deepspeed launcher set everything. Under srun the Slurm variables are translated: ranks meet on the
    first host of the step's list, at a port that follows from the job's number. Otherwise this is the only process.

    Raises:
        ValueError: started by srun without any list of hosts.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return {} if "LOCAL_RANK" in environment else {"LOCAL_RANK": "0"}
    # SLURM_NTASKS alone is also set in a bare batch script, which is one process whatever it says; a step's are srun's.
    tasks = environment.get("SLURM_STEP_NUM_TASKS")
    if tasks is None and environment.get("SLURM_STEP_ID", "").isdigit():
        tasks = environment.get("SLURM_NTASKS")
    if int(tasks or "1") > 1 and "SLURM_PROCID" in environment:
        hosts = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_LAUNCH_NODE_IPADDR")
        address = environment.get("MASTER_ADDR") or next(
            (environment[key] for key in hosts if environment.get(key)), ""
        )
        if not address:
            raise ValueError(
                f"srun started {tasks} processes, but none of {', '.join(hosts)} names their hosts: export MASTER_ADDR"
            )
        job = int(environment.get("SLURM_JOB_ID", "0"))
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": str(tasks),
            "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
            "MASTER_ADDR": first_host(address),
            "MASTER_PORT": environment.get("MASTER_PORT", str(20000 + job % 20000)),
        }
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm list: `gpu[03-05,9],login1` -> `gpu03`."""
    head = re.match(r"(?:[^,\[\]]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", head[0] if head else nodes)
