"""Saving beside the loop: what a failing disk does, and running out of memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.processes.ranks import World
from arcvideo.runner.runner import Runner
from arcvideo.runner.saving import HostCopies, Saver, host_buffer
from arcvideo.runner.settings import RunnerSettings, ScheduleSettings
from arcvideo.saving import checkpoint
from arcvideo.saving.checkpoint import CheckpointFolder
from arcvideo.tracking.cost import OutOfMemory
from tests.runner.job import TRAIN, build_engine
from tests.runner.test_engine import one_step
from tests.runner.tiny import Rows, cross_entropy


def run(folder: Path, *, world: World, objective: Any = cross_entropy, **settings: Any) -> None:
    Runner(
        engine=build_engine(world=world), source=Rows(), objective=objective,
        settings=RunnerSettings(**({"steps": 6, "save_every": 2, "log_every": 100, "liveness": False} | settings)),
        schedule=ScheduleSettings(), train=TRAIN, folder=folder, identity="tiny",
    ).run()  # fmt: skip


class Disk:
    """Writes tensors but for the calls named, which find no space."""

    def __init__(self, *full: int) -> None:
        self.full, self.calls, self.write = full, 0, checkpoint.write_tensors

    def __call__(self, *arguments: Any) -> dict[str, Any]:
        self.calls += 1
        if self.calls in self.full:
            raise OSError(28, "No space left on device")
        return self.write(*arguments)


def test_a_failed_write_is_said_and_survived_when_it_may_fail(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "write_tensors", Disk(1))
    run(tmp_path, world=world)
    found = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert found is not None
    assert found.step == 6
    assert "could not write checkpoint step-2" in capfd.readouterr().err


def test_more_failed_writes_than_allowed_end_the_run_in_one_error(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "write_tensors", Disk(3, 4))
    with pytest.raises(OSError, match=r"step-4.*No space left.*start the same command again"):
        run(tmp_path, world=world, save_failures=0)
    found = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert found is not None
    assert found.step == 2


def test_a_last_checkpoint_that_failed_is_written_again(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "write_tensors", Disk(5))
    run(tmp_path, world=world)
    found = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert found is not None
    assert found.step == 6


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    write = checkpoint.write_tensors

    def slow(*arguments: Any) -> dict[str, Any]:
        assert go.wait(60)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    engine = build_engine(world=world)
    one_step(engine)
    before = dict(engine.weights())
    saver = Saver(engine, folder=CheckpointFolder(tmp_path), identity="me")
    saver.save(1, state={}, say=print)
    one_step(engine, step=1)
    go.set()
    saver.settle(say=print)
    found = CheckpointFolder(tmp_path).newest()
    assert found is not None
    saved = found.tensors("weights")
    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())
    assert not all(torch.equal(saved[name], tensor) for name, tensor in engine.weights())


def test_ranks_share_the_tensors_between_them() -> None:
    named = [("weights", str(number), torch.full((2,), float(number))) for number in range(5)]
    taken = [HostCopies(pinned=False).take(iter(named), rank=rank, ranks=2)["weights"] for rank in range(2)]
    assert [[name for name, _ in part] for part in taken] == [["0", "2", "4"], ["1", "3"]]


def test_copies_take_as_much_host_memory_as_the_tensors_have(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[int] = []

    class Runtime:
        def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
            locked.append(size)
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    shapes = [torch.Size([5, 3]), torch.Size([33]), torch.Size([0])]
    assert [host_buffer(shape, locked=True).shape for shape in shapes] == shapes
    assert locked == [4 * 15, 4 * 33]
    offloaded = [("optimizer", str(number), torch.ones(shape)) for number, shape in enumerate(shapes)]
    taken = HostCopies(pinned=True).take(iter(offloaded), rank=0, ranks=1)["optimizer"]
    assert all(torch.equal(copy, torch.ones(shape)) for (_, copy), shape in zip(taken, shapes, strict=True))
    assert len(locked) == 2, "what lies on the host is copied as it is"


def test_running_out_of_memory_names_samples_and_the_override_that_fits(tmp_path: Path, world: World) -> None:
    def hungry(logits: torch.Tensor, batch: Any) -> Any:
        # The allocator itself refuses: no machine has so much.
        torch.empty(1 << 52)

    with pytest.raises(OutOfMemory, match=r"8 tokens, 0 frames.*samples sample-0\. What fits: data\.token_budget=\d+"):
        run(tmp_path, world=world, objective=hungry)
