"""The processes of a run: who this one is, and what they tell each other."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from arcvideo.launcher import launch_variables


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
