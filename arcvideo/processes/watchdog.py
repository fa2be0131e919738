"""The hang watchdog: when no step ends for long, say where every rank is and with which sample, and end the process."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from arcvideo.hidden import plain
from arcvideo.processes.activity import HANG_EXIT_CODE, Seen, blame, here, note
from arcvideo.processes.ranks import World
from arcvideo.processes.terminal import to_person

_GRACE = 10.0
"""Seconds that the first rank waits for the others' stacks."""
_COLLECTIVE = "torch/distributed/distributed_c10d.py"
"""In the stack of a rank that waits for the others."""
_ARM_EVERY = 1.0
"""Least seconds between two settings of faulthandler's timer."""


class Watchdog:
    """While entered, expects a `note` of progress at least every `seconds`.

    A thread of its own watches, so it works while the main thread waits in a collective. Should something hold the
    interpreter lock for good, the C timer of faulthandler ends the process a little later.
    """

    def __init__(self, *, seconds: float, folder: Path, world: World) -> None:
        """Prepare.

        Args:
            seconds: limit; 0 watches nothing.
            folder: receives `rank-<n>.txt`, the stacks of each rank.
            world: the ranks.
        """
        self._seconds, self._folder, self._world = seconds, folder, world
        # One tuple: replaced whole, read by another thread.
        self._where: tuple[str, tuple[str, ...], float] = ("starting", (), time.monotonic())
        self._armed = -math.inf
        self._end = threading.Event()

    def __enter__(self) -> Watchdog:
        if self._seconds:
            for old in self._folder.glob(f"rank-{self._world.rank}.txt"):
                old.unlink()
            self.note("starting")
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        faulthandler.cancel_dump_traceback_later()

    def note(self, what: str, keys: Sequence[str] = ()) -> None:
        """Progress: what begins now, with which samples."""
        now = time.monotonic()
        self._where = (what, tuple(keys), now)
        note(what, keys)
        # Arming starts a thread, which fast steps would feel.
        if self._seconds and now - self._armed >= _ARM_EVERY:
            self._armed = now
            faulthandler.dump_traceback_later(self._seconds + 3 * _GRACE, exit=True)

    def _watch(self) -> None:
        pause = min(self._seconds / 4, 1.0)
        while not self._end.wait(pause):
            if time.monotonic() - self._where[2] > self._seconds:
                self._bark()

    def _bark(self) -> None:
        what, keys, since = self._where
        head = f"rank {self._world.rank}: no progress for {time.monotonic() - since:.0f} s while {what}"
        head += f"; samples {', '.join(keys[:8])}" if keys else ""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            mine = self._folder / f"rank-{self._world.rank}.txt"
            with mine.with_suffix(".tmp").open("w") as file:
                file.write(plain(head) + "\n")  # keys are the data's, and somebody will look at it in a terminal
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
            os.replace(mine.with_suffix(".tmp"), mine)
        peers = here()
        seen = peers.look() if peers is not None else []
        if peers is not None:
            peers.log(seen)
        if peers.speaks(seen) if peers is not None else self._world.first:
            self._tell(seen)
        else:
            # Launchers end everybody as soon as one rank is gone: whoever speaks must have spoken by then.
            time.sleep(_GRACE)
        if peers is not None:
            peers.leave()
        os._exit(HANG_EXIT_CODE)

    def _tell(self, seen: Sequence[Seen]) -> None:
        """Print the stacks of all ranks, then one line: who keeps the others waiting, and with what."""
        deadline = time.monotonic() + _GRACE / 2
        files = [self._folder / f"rank-{rank}.txt" for rank in range(self._world.size)]
        alive = [file for file, peer in zip(files, seen, strict=True) if not peer.silenced] if seen else files
        while time.monotonic() < deadline and not all(file.exists() for file in alive):
            time.sleep(0.05)
        print(f"the run hangs (runner.hang_seconds={self._seconds:g}); stacks of all ranks:", file=sys.stderr)
        waits = []
        for rank, file in enumerate(files):
            text = file.read_text() if file.exists() else f"rank {rank}: no answer, its process is gone or stuck\n"
            waits += [rank] if _COLLECTIVE in text else []
            print(text, file=sys.stderr)
        sys.stderr.flush()
        if seen:
            who = blame(seen, waits=waits)
            to_person(
                f"error: {who}; no progress for {self._seconds:g} s (runner.hang_seconds), stacks in {self._folder}"
            )
