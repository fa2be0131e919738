"""The notebook runs from its first cell to its last, and is kept without outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SmallWorld

ROOT = Path(__file__).resolve().parent.parent
CELLS: list[dict[str, Any]] = json.loads((ROOT / "examples" / "tour.ipynb").read_text())["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_kept_without_what_it_printed() -> None:
    assert [cell["outputs"] for cell in CELLS if cell["cell_type"] == "code"] == [[]] * len(CODE)


@pytest.mark.slow
def test_every_cell_runs(small_world: SmallWorld, tmp_path: Path) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ARCVIDEO_SHARDS": f"{small_world.data}/test-*.tar",
        "ARCVIDEO_EXPORT": str(small_world.base),
    }
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(CODE)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "clips," in done.stdout
    assert "has not been measured" in done.stdout
