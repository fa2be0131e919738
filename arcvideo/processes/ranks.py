"""The processes of a run: who this one is, and what they tell each other."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from arcvideo.processes.activity import waiting
from arcvideo.processes.launcher import launch_variables


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


CUDA_VARIABLES = {
    # cuBLAS repeats its sums only with a workspace of its own for each stream.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Packed rows have other lengths at every step; segments that grow do not fragment.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # cuDNN builds a plan for every new shape of an attention call, tens of milliseconds each.
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
}
"""Set before CUDA starts, unless the environment says otherwise."""


def join(*, hang_seconds: float = 1800.0) -> World:
    """Take this process's place, starting torch.distributed once; works without any launcher.

    Args:
        hang_seconds: patience of the watchdog. Collectives wait longer, so that it speaks first, with stacks and
            samples; what one rank does alone (an export to a slow disk) must fit in, too.

    Raises:
        ValueError: there is a GPU that this torch cannot use.
    """
    os.environ.update(launch_variables(os.environ))
    rank, size, local = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if cuda:
        for name, value in CUDA_VARIABLES.items():
            os.environ.setdefault(name, value)
        # Slurm may show each process its own device only.
        local %= torch.cuda.device_count()
        torch.cuda.set_device(local)
        device = torch.device("cuda", local)
    else:
        _refuse_idle_gpus(Path("/dev"), asked=os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        patience = timedelta(seconds=max(2 * hang_seconds, 3600))
        # A process alone needs no network: a store in memory cannot lose a race for a port.
        alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if size == 1 else {}
        with waiting("for all ranks to come"):
            dist.init_process_group(backend, timeout=patience, device_id=device if cuda else None, **alone)
    return World(rank=rank, local_rank=local, size=size, device=device)


def _refuse_idle_gpus(devices: Path, *, asked: str | None) -> None:
    """Raise ValueError when `devices` has GPUs that torch does not see; `asked` is CUDA_VISIBLE_DEVICES."""
    gpus = sorted(devices.glob("nvidia[0-9]*"))
    if not gpus or asked in ("", "-1"):
        return
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is a build without CUDA: `make env PIP_TORCH=...` with one for your driver"
    else:
        why = f"torch {torch.__version__} needs a driver for CUDA {torch.version.cuda}: {_cuda_error()}"
    raise ValueError(
        f"this machine has GPUs ({', '.join(path.name for path in gpus)}), but torch cannot use them. {why}. To train "
        "on the CPU all the same, set CUDA_VISIBLE_DEVICES= (empty)"
    )


def _cuda_error() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "no device answers"


def gather_json(value: Any, *, world: World) -> list[Any]:
    """Each rank's value, in rank order, on every rank. Values must be JSON-able (floats keep all their bits)."""
    if world.size == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(world.device)
    length = torch.tensor([data.numel()], device=world.device)
    lengths = [torch.zeros_like(length) for _ in range(world.size)]
    with waiting():
        dist.all_gather(lengths, length)
    longest = max(int(item) for item in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=world.device)
    padded[: data.numel()] = data
    parts = [torch.zeros_like(padded) for _ in range(world.size)]
    with waiting():
        dist.all_gather(parts, padded)
    return [json.loads(bytes(part[: int(size)].cpu().numpy())) for part, size in zip(parts, lengths, strict=True)]


def barrier(*, world: World) -> None:
    """Wait for the others."""
    if world.size > 1:
        with waiting():
            dist.barrier()
