"""The processes of a run: who this one is, and what they tell each other."""

from __future__ import annotations

import json
import os
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

    torchrun and the deepspeed launcher set everything. Under srun the Slurm variables are translated. Otherwise this
    is the only process.

    Raises:
        ValueError: started by srun without a known address of the first node.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return {} if "LOCAL_RANK" in environment else {"LOCAL_RANK": "0"}
    # The step variable exists only under srun: a bare batch script with --ntasks=8 is still one process.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        address = environment.get("MASTER_ADDR") or environment.get("SLURM_LAUNCH_NODE_IPADDR")
        if not address:
            raise ValueError(
                "srun started several processes, but neither MASTER_ADDR nor SLURM_LAUNCH_NODE_IPADDR is set: "
                "export MASTER_ADDR"
            )
        job = int(environment.get("SLURM_JOB_ID", "0"))
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
            "MASTER_ADDR": address,
            "MASTER_PORT": environment.get("MASTER_PORT", str(20000 + job % 20000)),
        }
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def join() -> World:
    """Take this process's place, starting torch.distributed once; works without any launcher."""
    os.environ.update(launch_variables(os.environ))
    rank, size, local = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = torch.cuda.is_available()
    if cuda:
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
