"""What the tests start ends with them: after a failure, at a limit, and when the tests themselves are told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.spawned import finished, running

ROOT = Path(__file__).resolve().parents[1]
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""
CUT = f"""
import sys
from tests.spawned import running
PARENT = {PARENT!r}

def test_that_takes_long(request):
    with running([sys.executable, "-c", PARENT, {{file!r}}]) as process:
        process.wait()
"""


def born(file: Path) -> int:
    """The grandchild, once it is there."""
    until = time.monotonic() + 900
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return int(file.read_text())


def gone(process: int) -> bool:
    """Whether it has ended; a zombie has."""
    until = time.monotonic() + 900
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_a_failure_ends_the_process_and_what_it_has_started(tmp_path: Path) -> None:
    def fails() -> None:
        with running([sys.executable, "-c", PARENT, str(tmp_path / "pid")]) as process:
            started.extend([process.pid, born(tmp_path / "pid")])
            raise RuntimeError("as a failed assertion would")

    started: list[int] = []
    with pytest.raises(RuntimeError, match="failed assertion"):
        fails()
    assert len(started) == 2
    assert all(map(gone, started))


def test_a_limit_ends_all_of_it_and_a_quick_command_keeps_its_status_and_words(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        finished([sys.executable, "-c", PARENT, str(tmp_path / "pid")], seconds=5)
    assert not (tmp_path / "pid").exists() or gone(born(tmp_path / "pid"))
    done = finished([sys.executable, "-c", "import sys; print('a'); sys.exit('b')"], seconds=300)
    assert (done.returncode, done.stdout, done.stderr) == (1, "a\n", "b\n")


def test_tests_that_are_told_to_stop_leave_nothing_running(tmp_path: Path) -> None:
    (tmp_path / "test_cut.py").write_text(CUT.format(file=str(tmp_path / "pid")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path), "test_cut.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with running(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as tests:
        grandchild = born(tmp_path / "pid")
        tests.send_signal(signal.SIGTERM)
        assert tests.wait(300) == pytest.ExitCode.INTERRUPTED
    assert gone(grandchild)
