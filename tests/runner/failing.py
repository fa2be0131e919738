"""A rank for the tests: the ranks meet, one of them fails, the others wait for it in a collective."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from arcvideo.lineage.lock import launch
from arcvideo.processes.ranks import join
from arcvideo.processes.terminal import one_voice

if __name__ == "__main__":
    here, count, job = launch()
    with one_voice(Path(sys.argv[1]), rank=here, ranks=count, job=job):
        world = join()
        print(f"rank {world.rank} is here", flush=True)
        dist.barrier()
        if world.rank == 1:
            raise RuntimeError("the disk of rank 1 is on fire\nand more")
        dist.all_reduce(torch.ones(1))
