"""What a step took: peaks over everything that it did, seen through a device whose counters the test sets."""

from __future__ import annotations

import pytest
import torch

from arcvideo.processes.ranks import World
from arcvideo.tracking.cost import MemoryUse, OutOfMemory
from tests.runner.tiny import batch

GIB = 1 << 30


class Counters:
    """Stands for torch's counters of one CUDA device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.peak, self.reserved = 0, 0, 0
        for name, answer in {
            "memory_allocated": lambda device: self.now,
            "max_memory_allocated": lambda device: self.peak,
            "max_memory_reserved": lambda device: self.reserved,
            "reset_peak_memory_stats": lambda device: self._reset(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    def _reset(self) -> None:
        self.peak = self.reserved = self.now

    def use(self, gib: int, *, kept: int = 0) -> None:
        """Take so much on top of what is held, then give all of it back but `kept`."""
        self.peak = max(self.peak, self.now + gib * GIB)
        self.reserved = max(self.reserved, self.peak + GIB)
        self.now += kept * GIB


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    return Counters(monkeypatch)


DEVICE = torch.device("cuda", 0)
ALONE = World(rank=0, local_rank=0, size=1, device=DEVICE)


@pytest.mark.parametrize("largest", ["rollout", "first", "last", "optimizer", "checkpoint"])
def test_the_peak_of_a_step_is_that_of_its_largest_part(counters: Counters, largest: str) -> None:
    sizes = dict.fromkeys(["checkpoint", "rollout", "first", "last", "optimizer"], 10) | {largest: 60}
    use = MemoryUse(DEVICE)
    counters.use(70)
    use.since_last(world=ALONE)
    for part in ("checkpoint", "rollout"):
        counters.use(sizes[part])
    for part in ("first", "last"):
        use.before()
        counters.use(sizes[part])
        use.after(batch(0))
    counters.use(sizes["optimizer"])
    assert use.since_last(world=ALONE) == {"memory/gib": 60, "memory/reserved_gib": 61}


def test_what_a_micro_batch_needs_for_itself_is_learned_beside_the_peak(counters: Counters) -> None:
    use = MemoryUse(DEVICE)
    counters.use(30, kept=20)
    use.before()
    counters.use(12)
    use.after(batch(0, tokens=12))
    assert use._per_token == GIB
    assert use.since_last(world=ALONE)["memory/gib"] == 32


def test_running_out_of_memory_outside_of_a_micro_batch_says_when_and_what_takes_less() -> None:
    use = MemoryUse(torch.device("cpu"))
    with (
        pytest.raises(OutOfMemory, match=r"while the weights moved in step 3.*engine=zero2.*tried to allocate") as told,
        use.explained("the weights moved in step 3"),
    ):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB\nand more")
    assert len(str(told.value).splitlines()) == 1


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="another"), MemoryUse(torch.device("cpu")).explained("x"):
        raise RuntimeError("another")
