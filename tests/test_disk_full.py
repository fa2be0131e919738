"""A disk that takes no more ends a stage in one line with file and remedy, and loses nothing."""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from arcvideo.composing.ending import told as told_of
from tests.conftest import SmallWorld
from tests.spawned import finished

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/a"), "/x/a: No space left on device; make room, then"),
        (OSError(errno.EROFS, "Read-only file system"), "/runs: Read-only file system; choose a run_dir that can be"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "/runs: No space left on device; make"),
        (OSError(errno.ENOTCONN, "Not connected", "/m"), "/m: Transport endpoint is not connected; mount"),
        (ValueError("runner.steps=0: too few"), "runner.steps=0: too few"),
        (OSError("a message of our own"), "a message of our own"),
    ],
)  # fmt: skip
def test_an_error_of_the_disk_is_a_line_with_place_and_remedy(error: Exception, told: str) -> None:
    line = told_of(error, folder=Path("/runs"))
    assert line.startswith(told)
    assert "\n" not in line


@pytest.mark.slow
@pytest.mark.parametrize("most", [1 << 10, 1 << 17, 1 << 20])
def test_a_stage_that_cannot_write_says_so_and_continues_when_it_can(
    small_world: SmallWorld, tmp_path: Path, most: int
) -> None:
    """Limits on the size of a file stand for a full disk: of records, of checkpoints, of the export."""
    words = [sys.executable, "-m", "arcvideo.train", "stage=sft", *small_world.overrides, f"run_dir={tmp_path}"]
    words += ["feature_cache=false", "runner.save_every=1", "runner.liveness=false"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    full = finished(words, seconds=600, cwd=ROOT, preexec_fn=limited)
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stdout + full.stderr
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert str(tmp_path) in line
    assert "ulimit -f" in line or "then start the same command again" in line
    again = finished(words, seconds=600, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "sft" / "manifest.json").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="everything may be written by root")
def test_a_folder_of_somebody_else_is_a_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    words = [sys.executable, "-m", "arcvideo.train", "stage=sft", f"run_dir={tmp_path}/x"]
    done = finished(words, seconds=600, cwd=ROOT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
