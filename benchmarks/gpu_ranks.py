"""Under torchrun: the speed of an all-reduce over the ranks of one machine, printed by rank 0 as JSON."""

from __future__ import annotations

import json
import sys
import time

import torch
import torch.distributed as dist

from arcvideo.processes.ranks import join


def main() -> None:
    """Reduce a square of fp32 of the given side a few times."""
    world = join()
    numbers = torch.ones(int(sys.argv[1]) ** 2, device=world.device)
    dist.all_reduce(numbers)
    began = time.perf_counter()
    for _ in range(3):
        dist.all_reduce(numbers)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
    took = (time.perf_counter() - began) / 3
    if world.rank == 0:
        print(json.dumps({"ranks": dist.get_world_size(), "all_reduce_gb_s": 4 * numbers.numel() / took / 1e9}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
