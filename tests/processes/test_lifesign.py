"""Signs of life: a silent run says what it does, more and more rarely."""

from __future__ import annotations

import subprocess
import sys

from tests.runner.job import ROOT
from tests.spawned import running

SILENT = """
import sys
from arcvideo.processes import lifesign
from arcvideo.processes.activity import note
from arcvideo.processes.terminal import speak_plainly

speak_plainly()
lifesign.SILENCE_SECONDS = 0.1
note("loading weights")
with lifesign.signs_of_life():
    print("starts", file=sys.stderr)
    sys.stdin.readline()
    note("exporting")
    print("is heard again", file=sys.stderr)
    sys.stdin.readline()
"""


def test_a_silent_run_says_what_it_does_and_goes_on_to_say_so() -> None:
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with running([sys.executable, "-c", SILENT], **pipes) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        first = [process.stderr.readline() for _ in range(3)]
        process.stdin.write("\n")
        process.stdin.flush()
        rest = iter(process.stderr.readline, "")
        assert "is heard again\n" in rest
        assert next(line for line in rest if "exporting" in line).startswith("working: exporting, for ")
    assert first[0] == "starts\n"
    assert all(line.startswith("working: loading weights, for ") for line in first[1:])
