"""Saving while training goes on: the loop waits for a copy into host memory, a thread does the rest."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from arcvideo.processes.activity import beside
from arcvideo.processes.ranks import gather_json
from arcvideo.runner.engine import Engine
from arcvideo.saving.checkpoint import CheckpointError, CheckpointFolder, Share

_KINDS = ("weights", "optimizer")


class HostCopies:
    """Buffers in host memory, one per tensor, kept between saves: fresh memory costs more than the copy into it."""

    def __init__(self, *, pinned: bool) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._pinned = pinned

    def take(self, tensors: Iterator[tuple[str, str, Tensor]], *, rank: int, ranks: int) -> dict[str, list]:
        """Copy this rank's share (every `ranks`-th tensor); returns kind -> (name, fp32 copy) pairs.

        Args:
            tensors: kind, name and tensor, which may change once this returns; all ranks run through all of them,
                because gathering a tensor takes all ranks.
            rank: this one.
            ranks: how many share the work.
        """
        taken: dict[str, list] = {kind: [] for kind in _KINDS}
        for number, (kind, name, tensor) in enumerate(tensors):
            if number % ranks == rank:
                taken[kind].append((name, self._copy(kind, name, tensor)))
        if self._pinned:
            torch.cuda.synchronize()
        return taken

    def _copy(self, kind: str, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get((kind, name))
        if buffer is None or buffer.shape != tensor.shape:
            # States that are offloaded lie on the host already.
            buffer = host_buffer(tensor.shape, locked=self._pinned and tensor.device.type == "cuda")
            self._buffers[kind, name] = buffer
        buffer.copy_(tensor.detach(), non_blocking=True)
        return buffer


def host_buffer(shape: torch.Size, *, locked: bool) -> Tensor:
    """Return an fp32 tensor of exactly that size in host memory.

    Args:
        shape: of the tensor.
        locked: its pages stay where they are, so that a device copies into them on its own. torch's pinned memory would
            round every buffer up to a power of two: 96 GiB for the 84 GiB of a 7B and its optimizer.
    """
    buffer = torch.empty(shape, dtype=torch.float32)
    if locked and buffer.numel():
        torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)  # type: ignore[attr-defined]
    return buffer


class Saver:
    """The checkpoints of a run on this rank; at most one is being written at a time."""

    def __init__(
        self, engine: Engine, *, folder: CheckpointFolder, identity: str, failures: int = 0, patience: float = 1800
    ) -> None:
        """Prepare.

        Args:
            engine: whose state is saved.
            folder: where.
            identity: of the stage run.
            failures: so many failed writes in a row are reported and survived; the next one ends the run.
            patience: seconds that the first rank waits for the others' shares of a checkpoint.
        """
        self.engine, self.folder, self.identity, self.failures = engine, folder, identity, failures
        self.world, self._patience = engine.world, patience
        self.saved_at = -1
        """Steps of the newest checkpoint that was begun, -1 for none."""
        self._copies = HostCopies(pinned=self.world.device.type == "cuda")
        self._thread: threading.Thread | None = None
        self._give_up = threading.Event()
        self._error: str | None = None
        self._failed = 0
        self._whole: queue.SimpleQueue[int] = queue.SimpleQueue()

    @property
    def error(self) -> str | None:
        """What went wrong in the last write on this rank, as soon as it is known."""
        return self._error

    def save(self, done: int, *, state: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Begin the checkpoint of `done` finished steps, once; all ranks together.

        Args:
            done: steps.
            state: what else to keep, JSON-able; the first rank's counts.
            say: tells a person about a write that failed but may.

        Raises:
            CheckpointError: more writes in a row failed than allowed.
        """
        if done == self.saved_at:
            return
        self.settle(say=say)
        token = gather_json(uuid.uuid4().hex[:8] if self.world.first else None, world=self.world)[0]
        taken = self._copies.take(self.engine.live_state(), rank=self.world.rank, ranks=self.world.size)
        share = Share(
            step=done,
            identity=self.identity,
            token=token,
            weights=taken["weights"],
            optimizer=taken["optimizer"],
            state=state,
            rank=self.world.rank,
            ranks=self.world.size,
        )
        self.saved_at = done
        self._give_up.clear()
        # A daemon: a second signal or a crash must not wait for the disk; what it leaves is not a checkpoint yet.
        self._thread = threading.Thread(target=self._write, args=(share,), name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self, share: Share) -> None:
        beside(f"writing its share of checkpoint step-{share.step}")
        try:
            self.folder.write(share, give_up=self._give_up, patience=self._patience)
            self._whole.put(share.step)
        except OSError as error:
            self._error = str(error)
        except Exception as error:
            # Whatever it is, an error that ended here unseen would pass for a checkpoint.
            self._error = f"could not write checkpoint step-{share.step}: {type(error).__name__}: {error}"
        finally:
            beside("")

    def whole(self) -> list[int]:
        """Return the steps of checkpoints that were written since this was asked last; whole on the first rank."""
        return [self._whole.get() for _ in range(self._whole.qsize())]

    def settle(self, *, say: Callable[[str], None]) -> None:
        """Wait until nothing is being written; all ranks together.

        Raises:
            CheckpointError: more writes in a row failed than allowed.
        """
        if self._thread is None:
            return
        if not self.world.first:
            self._thread.join()
        # Rank 0 waits for the shares of the others: it must hear of one that will not come.
        if any(gather_json(None if self.world.first else self._error, world=self.world)):
            self._give_up.set()
        self._thread.join()
        self._thread = None
        errors = [error for error in gather_json(self._error, world=self.world) if error]
        self._error = None
        self._failed = self._failed + 1 if errors else 0
        if not errors:
            return
        # The cause is on the rank that failed by itself; rank 0 may only have missed its share.
        cause = next((error for error in errors if "did not arrive" not in error), errors[0])
        self.saved_at = -1
        if self._failed > self.failures:
            raise CheckpointError(f"{cause}. Free or repair the disk, then start the same command again")
        say(f"{cause}. Training goes on; the next save tries again ({self._failed} of {self.failures} may fail)")

    def leave(self, *, seconds: float = 30) -> None:
        """After an error: let the write under way finish, without a word to the other ranks, which may be gone.

        Args:
            seconds: at most; what is not whole by then is not a checkpoint.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            self._give_up.set()
