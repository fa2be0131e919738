from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arcvideo.decoding import pool as pools
from arcvideo.decoding import probe, worker
from arcvideo.decoding.pool import MediaPool
from arcvideo.decoding.probe import Extent, Probed, ProbeJob
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from tests.data import build

ROOT = Path(__file__).resolve().parents[2]
BAD = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.decoding import test_probe; test_probe.serve_badly()"
"""A decoding process of this page."""


def hang_or_die(job: ProbeJob, *, limits: MediaLimits) -> Probed:
    """Stands for a decoder with bad days: the file's name says what happens."""
    if job.main.name == "hangs":
        time.sleep(600)
    if job.main.name == "dies":
        os.kill(os.getpid(), 11)
    return probe.examine(job, limits=limits)


def serve_badly() -> None:
    """What the process runs instead."""
    worker.examine = hang_or_die
    worker.main()


@pytest.mark.slow
def test_hanging_and_dying_decoders_cost_one_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(build.wav(1.0))
    monkeypatch.setattr(pools, "_COMMAND", (sys.executable, "-c", BAD))

    def kinds(*names: str, seconds: float) -> list[str]:
        jobs = [ProbeJob(main=Extent(path=path, name=name)) if name else None for name in names]
        with MediaPool(count=1, limits=MediaLimits(deadline_seconds=seconds)) as pool:
            found = list(pool.examined(jobs))
        return [item.reason if isinstance(item, MediaError) else type(item).__name__ for item in found]

    # Only what hangs is given little time: anything else may take long on a machine with other work.
    assert kinds("good", "dies", "good", "", "good", seconds=600) == [
        "Probed",
        "crashed",
        "Probed",
        "NoneType",
        "Probed",
    ]
    assert kinds("hangs", "hangs", seconds=1) == ["timeout", "timeout"]


def test_process_that_cannot_start_is_not_the_fault_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    job = ProbeJob(main=Extent(path=tmp_path / "x.wav", name="x.wav"))
    with MediaPool(count=1) as pool, pytest.raises(pools.NoDecoder, match="does not start"):
        list(pool.examined([job]))


def test_script_without_a_main_guard_may_open_an_index(tmp_path: Path) -> None:
    pattern = build.shards(tmp_path, count=1)
    (tmp_path / "script.py").write_text(
        "import glob, pathlib, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from arcvideo.shards.index import ensure_indexes\n"
        f"(index,) = ensure_indexes([pathlib.Path(name) for name in glob.glob({pattern!r})], workers=1)\n"
        "print(len(index.clips))\n"
    )
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_pool_gives_what_this_process_gives(tmp_path: Path) -> None:
    jobs = []
    for number in range(9):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(build.wav(1.0 + number) if number % 4 else b"no sound")
        jobs.append(ProbeJob(main=Extent(path=path, name=path.name)))
    with MediaPool(count=2) as pool:
        together = list(pool.examined(jobs))
    alone = list(MediaPool(count=0).examined(jobs))
    assert [str(item) for item in together] == [str(item) for item in alone]


def test_who_stops_asking_does_not_wait_for_a_process_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(build.wav(1.0))
    monkeypatch.setattr(pools, "_COMMAND", (sys.executable, "-c", BAD))
    jobs = [ProbeJob(main=Extent(path=path, name=name)) for name in ("good", "hangs", "good", "good", "good", "good")]
    with MediaPool(count=1, limits=MediaLimits(deadline_seconds=3600)) as pool:
        examined = pool.examined(jobs)
        assert isinstance(next(examined), Probed)
        examined.close()
        assert [str(item) for item in pool.examined(jobs[:1])] == [str(probe.examine(jobs[0]))]
