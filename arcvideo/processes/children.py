"""Processes that a command starts and waits for: they hear its signals and never outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from arcvideo.processes.command import INTERRUPT_EXIT_CODE, REQUEUE_EXIT_CODE

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_SI_KERNEL = 0x80
"""How a signal is marked that a terminal sends, to the whole group of processes."""


def run_child(command: Sequence[str]) -> int:
    """Run a command to its end, pass SIGTERM, SIGUSR1, SIGHUP and SIGINT on to it, and return the status to exit with.

    A child that a passed-on signal ends before it could answer counts as one that was asked to stop (85); one that
    another signal ends as 128 + its number. When this process is killed, the child gets SIGTERM.
    """
    watched = {*FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    sent: set[int] = set()
    try:
        # No other thread runs in a command that only starts others, so code between fork and exec is safe.
        child = subprocess.Popen(command, preexec_fn=partial(_bind_to_parent, before, parent=os.getpid()))
        while child.poll() is None:
            heard = signal.sigtimedwait(watched, 1.0)
            if heard is None or heard.si_signo not in FORWARDED or child.poll() is not None:
                continue
            sent.add(heard.si_signo)
            if not (heard.si_signo == signal.SIGINT and heard.si_code == _SI_KERNEL):
                child.send_signal(heard.si_signo)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    status = child.returncode
    if -status in sent:
        return INTERRUPT_EXIT_CODE if status == -signal.SIGINT else REQUEUE_EXIT_CODE
    return status if status >= 0 else 128 - status


def _bind_to_parent(mask: set[int | signal.Signals], *, parent: int) -> None:
    """Let the parent's death end this process, and its signals arrive."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if os.getppid() != parent:  # it died before it was asked to tell
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_parent(number: int = signal.SIGTERM, parent: int = 0) -> None:
    """Have this process hear a signal when the one that started it dies, however that comes about.

    Args:
        number: SIGTERM for a run, which saves first; SIGKILL for a worker that has nothing of its own.
        parent: the process that started this one, where it is known; it may have died already.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
    if parent and os.getppid() != parent:
        os.kill(os.getpid(), number)


def start_deaf(pool: ProcessPoolExecutor, *, workers: int) -> None:
    """Start the processes of a pool deaf to Ctrl-C, which a terminal sends to them as well: their parent ends them.

    Args:
        pool: nothing was handed to it yet.
        workers: how many processes it may have.
    """
    from multiprocessing import resource_tracker  # a pool has it loaded

    resource_tracker.ensure_running()  # when it begins, it lets the signal through again
    with _interrupts_later():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(workers):  # a process is started for each task that finds none idle
                pool.submit(int)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Answer Ctrl-C behind the block; a mask is not enough, for threads of libraries take the signal, too.

    A process that loses its parent while it is told what it is for says so with a traceback.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)
