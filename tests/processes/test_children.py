"""Commands that start others hand their signals on, and leave nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arcvideo.processes.children import _interrupts_later
from arcvideo.processes.command import ASKS_TO_STOP, REQUEUE_EXIT_CODE, TWICE_SECONDS
from arcvideo.processes.signals import StopSignals
from tests.spawned import finished, running

ROOT = Path(__file__).resolve().parent.parent
# Says that it is there, then answers SIGTERM and SIGUSR1 as a run does.
SAVES = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(85))
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(85))
print(os.getpid(), flush=True)
time.sleep(600)
"""
DEAF = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
PARENT = """
import sys
from arcvideo.processes.children import run_child
sys.exit(run_child([sys.executable, "-c", sys.argv[1]]))
"""


def started(program: str) -> tuple[subprocess.Popen[str], int]:
    """A process that runs a child with this program, and the child's number."""
    command = [sys.executable, "-c", PARENT, program]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=_hear_interrupts,
    )  # fmt: skip
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def _hear_interrupts() -> None:
    """A shell lets what it starts in the background ignore SIGINT, the tests included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def gone(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize(
    ("program", "number", "status"),
    [
        (SAVES, signal.SIGTERM, 85),
        (SAVES, signal.SIGUSR1, 85),
        (DEAF, signal.SIGTERM, 85),  # it had not yet learnt to answer: the same command starts it again
        (DEAF, signal.SIGINT, 130),
        (SAVES, signal.SIGKILL, -9),
    ],
)
def test_a_signal_to_the_parent_alone_ends_the_child_too(program: str, number: int, status: int) -> None:
    parent, child = started(program)
    parent.send_signal(number)
    assert parent.wait(60) == status
    assert within(60, lambda: gone(child))


def test_the_status_of_a_child_is_its_own() -> None:
    for program, status in (("raise SystemExit(4)", 4), ("import os, signal; os.kill(os.getpid(), 9)", 137)):
        done = subprocess.run([sys.executable, "-c", PARENT, program], env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_outside_of_the_loop_a_signal_ends_with_the_status_of_a_run_that_saved(number: int) -> None:
    program = "from arcvideo.processes.command import stop_with_status; stop_with_status()\n" + DEAF
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env)
    assert run.stdout is not None
    run.stdout.readline()
    run.send_signal(number)
    assert run.wait(60) == 85


@pytest.mark.parametrize("number", ASKS_TO_STOP)
def test_a_closed_terminal_asks_to_stop_like_a_scheduler(number: signal.Signals) -> None:
    code = (
        "import time\nfrom arcvideo.processes.command import stop_with_status\nstop_with_status()\n"
        "print('up', flush=True)\ntime.sleep(60)\n"
    )
    with running([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(30) == REQUEUE_EXIT_CODE


def test_nobody_who_reads_ends_no_run() -> None:
    code = (
        "import sys\nfrom arcvideo.processes.terminal import speak_plainly\nspeak_plainly()\n"
        "for number in range(20000):\n    print(number)\n"
        "print('done', file=sys.stderr)\n"
    )
    with running([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == "done\n"
        assert process.wait(30) == 0


@pytest.mark.parametrize("number", ASKS_TO_STOP)
def test_one_signal_to_the_whole_group_that_is_handed_on_as_well_still_saves(number: signal.Signals) -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert signals.requested


def test_whoever_asks_again_later_does_not_want_to_wait() -> None:
    code = (
        "import time\nfrom arcvideo.processes.signals import StopSignals\n"
        "with StopSignals() as signals:\n    print('up', flush=True)\n"
        "    while not signals.requested:\n        time.sleep(0.01)\n"
        "    print('asked', flush=True)\n    time.sleep(600)\n"
    )
    with running([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        time.sleep(TWICE_SECONDS + 0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_libraries_draw_no_bars_in_a_log() -> None:
    code = (
        "from arcvideo.processes.terminal import speak_plainly\nspeak_plainly()\n"
        "from transformers.utils import logging\n"
        "print(*logging.tqdm(range(3), desc='Writing model shards'), logging.is_progress_bar_enabled())\n"
    )
    unset = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = finished([sys.executable, "-c", code], seconds=300, env=unset)
    assert (done.stdout, "Writing" in done.stderr) == ("0 1 2 False\n", False)


def test_ctrl_c_while_processes_are_started_is_answered_behind_that() -> None:
    before, went_on = signal.signal(signal.SIGINT, signal.default_int_handler), []

    def starting() -> None:
        with _interrupts_later():
            signal.raise_signal(signal.SIGINT)
            went_on.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            starting()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert went_on
