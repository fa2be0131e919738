"""What of a failing disk costs a clip, and what ends the run so that nothing is lost."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.feed.quarantine import Quarantine
from arcvideo.shards import members
from tests.data import build
from tests.feed.test_source import source


def test_a_shard_that_is_gone_for_a_while_costs_no_clip(tmp_path: Path) -> None:
    """As under a mount that vanished: the run ends, nothing is written off, and the same command goes on."""
    pattern = build.shards(tmp_path / "data", count=3)
    want = source(build.settings(pattern)).batches(0).batches
    made = source(build.settings(pattern))
    (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(OSError, match="is not there any more; mount its folder again"):
        made.batches(0)
    (tmp_path / "away").rename(tmp_path / "data")
    again = made.batches(0).batches
    assert all(torch.equal(one.input_ids, other.input_ids) for one, other in zip(want, again, strict=True))
    assert made.counts()["tiny"]["bad_samples"] == 0


@pytest.mark.parametrize(("number", "lost"), [(errno.EIO, True), (errno.EACCES, False), (errno.EMFILE, False)])
def test_only_bytes_that_the_disk_does_not_give_cost_their_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, lost: bool
) -> None:
    made = source(build.settings(build.shards(tmp_path, count=3)))
    monkeypatch.setattr(members, "_PAUSES", ())
    opened = builtins.open

    def refusing(path: Any, *words: Any, **more: Any) -> Any:
        if str(path).endswith(".tar"):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *words, **more)

    monkeypatch.setattr(builtins, "open", refusing)
    monkeypatch.setattr(Quarantine, "_check", lambda *words: None)
    if lost:
        made.batches(0)
        assert set(made.counts()["tiny"]["reasons"]) == {"Unreadable"}
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            made.batches(0)
        assert made.counts()["tiny"]["bad_samples"] == 0
