"""A disk that takes no more ends a stage in one line with file and remedy, and loses nothing."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from arcvideo.files import error_line
from arcvideo.model.disk.parts import main as assemble
from arcvideo.synthetic.base import main as make_base
from tests.conftest import SmallWorld
from tests.spawned import finished

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/a"), "/x/a: No space left on device; make room, then"),
        (OSError(errno.EROFS, "Read-only file system"), "/runs: Read-only file system; choose a run_dir that can be"),
        (OSError(errno.ENOTDIR, "Not a directory", "/x/a"), "/x/a: Not a directory; remove the file that stands where"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "/runs: No space left on device; make"),
        (OSError(errno.ENOTCONN, "Not connected", "/m"), "/m: Transport endpoint is not connected; mount"),
        (ValueError("runner.steps=0: too few"), "runner.steps=0: too few"),
        (OSError("a message of our own"), "a message of our own"),
    ],
)  # fmt: skip
def test_an_error_of_the_disk_is_a_line_with_place_and_remedy(error: Exception, told: str) -> None:
    line = error_line(error, folder=Path("/runs"), key="run_dir")
    assert line.startswith(told)
    assert "\n" not in line


def refused(words: list[str], *, cwd: Path, most: int | None = None) -> str:
    """Return the one line that a command ends with; with `most` no file may be longer, as on a full disk."""

    def limited() -> None:
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = finished([sys.executable, "-m", *words], seconds=300, cwd=cwd, env=env, preexec_fn=limited)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    return line


@pytest.mark.parametrize(
    "words",
    [
        ["hydra.run.dir=file/run"],
        ["hydra.run.dir=file"],
        ["hydra.output_subdir=../../../file/records"],
        ["-m", "hydra.sweep.dir=file/sweep", "runner.seed=0,1"],
        ["hydra.job_logging.root.handlers=[file]", "hydra.job_logging.handlers.file={filename:file/log,delay:false}"],
    ],
    ids=lambda words: words[-1] if len(words) == 1 else words[1],
)
def test_a_folder_that_hydra_cannot_make_is_a_line(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").touch()
    line = refused(["arcvideo.train", "stage=sft", "run_dir=runs", "parent=nowhere", *words], cwd=tmp_path)
    assert line.startswith("error: ")
    assert "file" in line.partition(": ")[2].partition(": ")[0]
    assert "remove the file that stands where a folder shall be, or choose another" in line


def test_a_disk_that_takes_no_record_of_hydras_is_a_line(tmp_path: Path) -> None:
    words = ["arcvideo.train", "stage=sft", "run_dir=runs", "parent=nowhere", "hydra.run.dir=elsewhere"]
    assert refused(words, cwd=tmp_path, most=1).startswith("error: elsewhere: File too large; raise the limit")


@pytest.mark.parametrize(
    "words",
    [
        ["arcvideo.pipeline", "recipe=tiny_shorts", "given.run=file/runs"],
        ["arcvideo.synthetic", "--out", "file/data", "--clips", "1"],
        ["arcvideo.rejection.sample", "checkpoint=.", "shards=[nowhere]", "out=file/kept", "tasks=[mcq]"],
        ["arcvideo.ask", "checkpoint=.", "questions=file", "out=file/answers.jsonl"],
    ],
    ids=lambda words: words[0],
)
def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").touch()
    line = refused(words, cwd=tmp_path)
    assert "file/" in line
    assert "cannot be written" in line or "remove the file" in line


@pytest.mark.parametrize(
    ("command", "words"), [(make_base, ["--data", "nowhere"]), (assemble, ["--llm", "nowhere"])], ids=["base", "parts"]
)
def test_weights_are_not_made_for_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], int], words: list[str]
) -> None:
    (tmp_path / "file").touch()
    assert command([*words, "--out", str(tmp_path / "file" / "base")]) == 2
    assert f"{tmp_path / 'file' / 'base'}: cannot be written; give another folder" in capsys.readouterr().err


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
