"""Locks: one holder at a time, and disks that have none."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from arcvideo.lineage.lock import alone_filling, alone_in
from arcvideo.processes import locks
from arcvideo.processes.locks import appending, held, hold
from arcvideo.shards.locks import locked


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Lustre mounted without `flock`; no disk of a test machine is like that."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_told", set())


def test_a_second_holder_waits_or_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("a") as first, path.open("a") as second:
        assert hold(first, path=path)
        assert not hold(second, path=path, wait=False)
        assert not held(second, wait=False, shared=True)
        first.close()
        assert hold(second, path=path)


@pytest.mark.usefixtures("no_locks")
def test_work_goes_on_where_a_disk_has_no_locks_and_that_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        alone_in(tmp_path / "run" / "sft"),
        alone_filling(tmp_path / "data"),
        appending(tmp_path / "answers.jsonl") as file,
        locked(tmp_path / "x.lock") as mine,
    ):
        file.write("{}\n")
        assert mine
    said = capsys.readouterr().err
    assert said.count("its disk has no locks") == 1
    assert "start only one job that writes there" in said
