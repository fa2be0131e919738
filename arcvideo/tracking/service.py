"""W&B's own process, when it was given up: a run's end neither waits for it nor shows what it says then."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS = 10
"""That it has at the end of the run to write its files."""
_left: set[str] = set()


def leave_behind(run_id: str) -> None:
    """Give up a run of W&B's: it says nothing any more, and the end of this process waits for W&B's own no longer than
    `SECONDS`.

    W&B waits there without end for a process that does not answer, and shows a traceback for one that is gone.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return
    if not _left:
        atexit.register(_end, wandb)  # before W&B's own, which was registered earlier
    _left.add(run_id)
    with suppress(Exception):
        wandb.termsetup(wandb.Settings(silent=True), None)


def is_left(run_id: str) -> bool:
    """Return whether a run was given up in this process."""
    return run_id in _left


def _end(wandb: Any) -> None:
    def work() -> None:
        with suppress(Exception):
            wandb.teardown()  # takes W&B's own hook away first

    thread = threading.Thread(target=work, name="wandb-end", daemon=True)
    thread.start()
    thread.join(SECONDS)
    for pid in _children() if thread.is_alive() else ():
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _children() -> list[int]:
    """Return the processes of W&B that this one has started."""
    started: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            started += map(int, (task / "children").read_text().split())
    return [pid for pid in started if _is_theirs(pid)]


def _is_theirs(pid: int) -> bool:
    with suppress(OSError):
        return b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
