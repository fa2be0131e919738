"""Processes of a test, which end with it, whatever they have started in turn and however the test ends; their ports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

_HELD: list[socket.socket] = []


def free_port() -> int:
    """A port for a process that the tests start; nobody else is given it while this process lives.

    The socket stays bound, so the kernel hands the port to no one who asks for any. As it does not listen and allows
    its address to be used again (set after binding, or it might share another's), a server that names the port gets it.
    """
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _HELD.append(held)
    return int(held.getsockname()[1])


def children(parent: int) -> list[int]:
    """Processes that `parent` has started and that are there now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def end_family(parent: int) -> None:
    """Kill what descends from a process, then the process itself; ranks and workers outlive whoever started them."""
    family, waiting = [parent], [parent]
    while waiting:
        born = children(waiting.pop())
        family += born
        waiting += born
    for number in reversed(family):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


@contextlib.contextmanager
def running(command: Sequence[str], **words: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process for the length of the block; `words` are those of `Popen`."""
    process = subprocess.Popen(command, **words)
    try:
        yield process
    finally:
        if process.poll() is None:
            end_family(process.pid)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def finished(command: Sequence[str], *, seconds: float, **words: Any) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run` with captured text; after `seconds` all that the command has started is killed.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **words) as process:
        said, complained = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


def tool(name: str, *, needs: str = "") -> Path:
    """Return a program that `.ci/tools` installs; the test is skipped where it was not, or cannot import `needs`."""
    program = Path(sys.prefix) / "tools" / "bin" / name
    found = program.exists() and (not needs or any(program.parents[1].glob(f"lib/python*/site-packages/{needs}")))
    if not found:
        pytest.skip(f"{needs or name} is not installed; .ci/tools does so")
    return program
