"""The processes of a run: who this one is, and what they tell each other."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that prints and writes."""
        return self.rank == 0


def launch_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment so that torch.distributed finds its place.

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
    """The first host of a Slurm list: `gpu[03-05,9],login1` -> `gpu03`."""
    head = re.match(r"(?:[^,\[\]]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", head[0] if head else nodes)


def join() -> World:
    """Take this process's place, starting torch.distributed once; works without any launcher."""
    os.environ.update(launch_variables(os.environ))
    rank, size, local = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = torch.cuda.is_available()
    if cuda:
        # Slurm may show each process its own device only.
        local %= torch.cuda.device_count()
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        # A process alone needs no network: a store in memory cannot lose a race for a port.
        if size == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend)
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    return World(rank=rank, local_rank=local, size=size, device=device)


def gather_json(value: Any, *, world: World) -> list[Any]:
    """Each rank's value, in rank order, on every rank. Values must be JSON-able (floats keep all their bits)."""
    if world.size == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(world.device)
    length = torch.tensor([data.numel()], device=world.device)
    lengths = [torch.zeros_like(length) for _ in range(world.size)]
    dist.all_gather(lengths, length)
    longest = max(int(item) for item in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=world.device)
    padded[: data.numel()] = data
    parts = [torch.zeros_like(padded) for _ in range(world.size)]
    dist.all_gather(parts, padded)
    return [json.loads(bytes(part[: int(size)].cpu().numpy())) for part, size in zip(parts, lengths, strict=True)]


def barrier(*, world: World) -> None:
    """Wait for the others."""
    if world.size > 1:
        dist.barrier()
