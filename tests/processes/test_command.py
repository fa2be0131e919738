"""Whoever asks a command to stop gets the status for that and at most a line, at any moment, of imports too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from arcvideo.processes.command import TWICE_SECONDS
from tests.spawned import children, finished, free_port, running

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    "train": ["stage=sft"],
    "pipeline": ["recipe=tiny_shorts"],
    "preflight": ["recipe=tiny_shorts"],
    "evaluate": ["benches"],
    "ask": ["checkpoint=nowhere", "question=what"],
    "rejection.sample": ["checkpoint=nowhere", "shards=nowhere.tar", "out=kept"],
    "data.shards": ["index", "nowhere.tar"],
    "verify": ["nowhere"],
    "report": ["nowhere"],
    "synthetic": ["--out", "made"],
    "torchrun": ["--nproc_per_node", "2", "stage=sft"],
}
"""Module below `arcvideo` -> words that would have it do something."""
HALT = """
import os, sys, time

class Halt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("HALT_AT"):
            del os.environ["HALT_AT"]
            os.write(1, b"here\\n")
            time.sleep(600)

sys.meta_path.insert(0, Halt())
"""
"""A `sitecustomize` that says when a module is about to be imported, and waits there."""
LAST = """
import atexit, os, sys

class Last:
    def __del__(self, write=os.write):
        write(1, b"taken apart\\n")

sys.last = Last()
"""
"""A `sitecustomize` that tells when Python takes its modules apart."""
BODY = """
import atexit, os, signal, sys, time
from arcvideo.processes.command import as_command

def main():
{body}

if __name__ == "__main__":
    as_command(main)
"""


def hear_interrupts() -> None:
    """A shell lets what it starts in the background ignore SIGINT, the tests included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def told(
    command: Sequence[str], *, number: int, cwd: Path, env: dict[str, str], again: float = -1.0
) -> tuple[int, str]:
    """Status and stderr of a command that gets a signal once it has printed a line; `again` seconds later once more."""
    words = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": hear_interrupts}
    with running(command, cwd=cwd, env=env, **words) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if not process.stdout.readline():
            pytest.fail(process.stderr.read())
        process.send_signal(number)
        if again >= 0:
            time.sleep(again)
            process.send_signal(number)
        said = process.stderr.read()
        return process.wait(60), said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 85), (signal.SIGHUP, 85)])
@pytest.mark.parametrize(
    ("module", "at"),
    [*((module, "arcvideo.registration") for module in WORDS), ("train", "hydra"), ("train", "arcvideo.train")],
)
def test_a_command_that_is_still_being_imported(
    tmp_path: Path, module: str, at: str, number: signal.Signals, status: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HALT)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "HALT_AT": at}
    command = [sys.executable, "-m", f"arcvideo.{module}", *WORDS[module]]
    if at == "arcvideo.train":  # through the installed command, which imports what it was asked for later
        command = [sys.executable, "-m", "arcvideo", "train", *WORDS[module]]
    ended, said = told(command, number=number, cwd=tmp_path, env=env)
    assert (ended, said.split()) == (status, ["interrupted"] if number == signal.SIGINT else [])


def body(text: str, *, at: Path) -> list[str]:
    at.write_text(BODY.format(body="".join(f"    {line}\n" for line in text.strip().splitlines())))
    return [sys.executable, str(at)]


def test_ranks_that_hear_ctrl_c_say_so_once(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HALT)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "HALT_AT": "hydra"}
    command = [sys.executable, "-m", "arcvideo.torchrun", "--nproc_per_node", "2", "--master_port", str(free_port())]
    words = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": hear_interrupts}
    with running([*command, "stage=sft"], cwd=tmp_path, env=env, start_new_session=True, **words) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["here\n", "here\n"]
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=300)[1] == "\ninterrupted\n"
        assert process.returncode == 130


ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    "text",
    [
        "print('up', flush=True)\ntime.sleep(600)",
        # Python prints what cannot be raised in a `__del__` and goes on.
        "class Late:\n    def __del__(self):\n        print('up', flush=True)\n        time.sleep(600)\nlate = Late()\n"
        "del late\ntime.sleep(600)",
    ],
    ids=["anywhere", "where nothing can be raised"],
)
def test_ctrl_c_is_a_line(tmp_path: Path, text: str) -> None:
    ended, said = told(body(text, at=tmp_path / "a.py"), number=signal.SIGINT, cwd=tmp_path, env=ENV)
    assert (ended, said) == (130, "\ninterrupted\n")


CLEANS = """
try:
    print('up', flush=True)
    time.sleep(600)
finally:
    time.sleep({seconds})
    open('clean', 'w')
"""


def test_ctrl_c_that_a_launcher_hands_on_as_well_lets_the_first_clean_up(tmp_path: Path) -> None:
    command = body(CLEANS.format(seconds=1), at=tmp_path / "a.py")
    assert told(command, number=signal.SIGINT, cwd=tmp_path, env=ENV, again=0.1) == (130, "\ninterrupted\n")
    assert (tmp_path / "clean").exists()


def test_ctrl_c_again_ends_a_clean_up_that_takes_too_long(tmp_path: Path) -> None:
    command = body(CLEANS.format(seconds=600), at=tmp_path / "a.py")
    ended, said = told(command, number=signal.SIGINT, cwd=tmp_path, env=ENV, again=TWICE_SECONDS + 0.2)
    assert (ended, said) == (130, "")


def test_a_signal_in_the_middle_of_a_print_ends_the_process_too(tmp_path: Path) -> None:
    """A stream that is being written to refuses to be entered again."""
    text = "print('up', flush=True)\nwhile True:\n    print('x' * 1000, file=sys.stderr)"
    (tmp_path / "a.py").write_text(BODY.format(body="".join(f"    {line}\n" for line in text.splitlines())))
    command = [sys.executable, str(tmp_path / "a.py")]
    for _ in range(20):
        with running(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 85


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_printed_without_a_stream_goes_into_no_file(tmp_path: Path, closed: str) -> None:
    """The next file that is opened would get the number of a stream that is closed."""
    text = "with open('file', 'wb') as file:\n    os.write(2, b'a word')\n    print('word')\n    file.write(b'whole')"
    command = body(text, at=tmp_path / "a.py")
    done = finished(["sh", "-c", f'"$0" "$1" {closed}', *command], seconds=300, cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize(("word", "status"), [("--version", 0), ("trian", 1)])
def test_a_command_has_no_end_in_which_a_signal_would_replace_its_status(
    tmp_path: Path, word: str, status: int
) -> None:
    """Python takes its modules apart at its end, a second where torch is loaded, and hears no signals any more."""
    (tmp_path / "sitecustomize.py").write_text(LAST)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = finished([sys.executable, "-m", "arcvideo", word], seconds=300, env=env)
    assert done.returncode == status
    assert "taken apart" not in done.stdout
    ours = finished([sys.executable, "-c", "pass"], seconds=300, env=env)
    assert "taken apart" in ours.stdout


def test_importing_the_package_answers_no_signals() -> None:
    code = "import signal, arcvideo; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    assert finished([sys.executable, "-c", code], seconds=300, env=ENV).stdout == "True\n"


def test_ctrl_c_in_a_terminal_reaches_processes_that_a_command_has_started_and_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "arcvideo.synthetic", "--out", "made", "--workers", "3", "--clips", "300"]
    words = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": hear_interrupts}
    with running(command, cwd=tmp_path, env=ENV, start_new_session=True, **words) as process:
        until = time.monotonic() + 300
        while len(started := children(process.pid)) < 4:  # with the one that tidies up behind them
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=300)[1] == "\ninterrupted\n"
        assert process.returncode == 130
    until = time.monotonic() + 60  # the one that tidies up ends a moment later
    while [number for number in started if Path(f"/proc/{number}").exists()]:
        assert time.monotonic() < until
        time.sleep(0.02)
