"""A few random kills of a whole pipeline; `make torture-pipeline` does many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runner.torture_pipeline import MARK, descended, differences, torture
from tests.spawned import running


def test_what_a_command_has_started_is_found_by_its_mark_though_its_parent_is_gone(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    parent = f"import subprocess; print(subprocess.Popen({sleeper!r}, start_new_session=True).pid)"
    mark = tmp_path.name
    with running([sys.executable, "-c", parent], env={MARK: mark}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        process.wait()
        try:
            assert descended(mark) == [orphan]
            assert descended(f"{mark}-other") == []
        finally:
            subprocess.run(["kill", "-9", str(orphan)], check=True)


def test_whatever_differs_is_named() -> None:
    one = {"sft: model.safetensors": "a", "sft: steps": 4}
    assert list(differences(one, dict(one))) == []
    (line,) = differences(one, one | {"sft: steps": 5})
    assert line == "sft: steps: 4 without kills, 5 with them"
    (line,) = differences(one, {"sft: steps": 4})
    assert line.startswith("sft: model.safetensors: a without kills, None")


@pytest.mark.slow
@pytest.mark.nightly
def test_a_pipeline_and_a_sweep_that_are_killed_end_as_if_nobody_had_touched_them(tmp_path: Path) -> None:
    outcome = torture(tmp_path, kills=4, seed=1)
    assert outcome.kills == 4
    assert outcome.rounds >= 1
