"""What every file system of fsspec goes through, tried with the one that needs neither a package nor a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from arcvideo.remote.origin import FSSPEC
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.shards import ShardCache
from arcvideo.shards.index import ensure_indexes
from tests.data import build

NAME = "shard-000000.tar"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose shard lies in memory:// too."""
    monkeypatch.setitem(FSSPEC, "memory", "fsspec")
    build.shards(tmp_path / "here", count=3, per_shard=3)
    files = fsspec.filesystem("memory")
    files.pipe_file(f"/{tmp_path.name}/{NAME}", (tmp_path / "here" / NAME).read_bytes())
    yield tmp_path / "here"
    files.rm(f"/{tmp_path.name}", recursive=True)


def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(ShardCacheSettings(path=str(tmp_path / "cache"), stall_seconds=10.0, retries=0))


def test_what_lies_in_a_file_system_is_what_lies_here(here: Path, tmp_path: Path) -> None:
    (there,) = ensure_indexes([cache(tmp_path).fetch(f"memory://{tmp_path.name}/{NAME}")], progress=False)
    (local,) = ensure_indexes([here / NAME], progress=False)
    assert there.digest == local.digest
    assert [there.media_bytes(row) for row in range(3)] == [local.media_bytes(row) for row in range(3)]


def test_a_file_of_another_size_is_refused_and_a_missing_one_is_told(here: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/{NAME}"
    (index,) = ensure_indexes([cache(tmp_path).fetch(url)], progress=False)
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/{NAME}", (here / NAME).read_bytes() + bytes(10240))
    with pytest.raises(ValueError, match=rf"{url}: changed since it was indexed \(size was"):
        index.media_bytes(0)
    with pytest.raises(ValueError, match=r"none\.tar: cannot be read: .*FileNotFound"):
        cache(tmp_path).fetch(f"memory://{tmp_path.name}/none.tar")
