from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from arcvideo.data import probe
from arcvideo.data.probe import Extent, Probed, ProbeJob, ProbePool
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from tests.data import build


def hang_or_die(job: ProbeJob, *, limits: MediaLimits) -> Probed | MediaError:
    """Stands for a decoder with bad days: the file's name says what happens."""
    if job.main.name == "hangs":
        time.sleep(600)
    if job.main.name == "dies":
        os.kill(os.getpid(), 11)
    return probe.examine(job, limits=limits)


def serve_badly(pipe: object, limits: MediaLimits) -> None:
    probe._answer = hang_or_die
    probe._serve(pipe, limits)  # type: ignore[arg-type]


@pytest.mark.slow
def test_hanging_and_dying_decoders_cost_one_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(build.wav(1.0))
    real = probe.get_context("spawn").Process

    class Context:
        Pipe = staticmethod(probe.get_context("spawn").Pipe)

        @staticmethod
        def Process(*, target: object, args: tuple[object, ...], daemon: bool) -> object:
            return real(target=serve_badly, args=args, daemon=daemon)

    monkeypatch.setattr(probe, "get_context", lambda kind: Context)
    monkeypatch.setattr(probe, "_START_SECONDS", 20.0)
    names = ["good", "dies", "good", "", "good", "hangs", "good"]
    jobs = [ProbeJob(main=Extent(path=path, name=name)) if name else None for name in names]
    with ProbePool(count=1, limits=MediaLimits(deadline_seconds=0.5)) as pool:
        # The process is warm when the hanging file comes, so its deadline is the short one.
        found = list(pool.map(jobs))
    kinds = [item.reason if isinstance(item, MediaError) else type(item).__name__ for item in found]
    assert kinds == ["Probed", "crashed", "Probed", "NoneType", "Probed", "timeout", "Probed"]


def test_pool_gives_what_this_process_gives(tmp_path: Path) -> None:
    jobs = []
    for number in range(9):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(build.wav(1.0 + number) if number % 4 else b"no sound")
        jobs.append(ProbeJob(main=Extent(path=path, name=path.name)))
    with ProbePool(count=2) as pool:
        together = list(pool.map(jobs))
    alone = list(ProbePool().map(jobs))
    assert [str(item) for item in together] == [str(item) for item in alone]
