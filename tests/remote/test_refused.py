"""A remote shard that a server refuses is told with its address, whichever part of the reading met it."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcvideo.remote.links import read_link
from arcvideo.remote.reading import confirm
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.shards import ShardCache
from arcvideo.shards.index import ensure_indexes
from tests.data import build
from tests.remote.server import serving


def test_a_file_that_goes_before_it_is_indexed_or_asked_about_is_told_with_its_address(tmp_path: Path) -> None:
    build.shards(tmp_path / "here", count=2, per_shard=2)
    with serving(tmp_path / "here") as served:
        url = f"{served.address}/shard-000000.tar"
        link = ShardCache(ShardCacheSettings(path=str(tmp_path / "cache"), retries=1)).fetch(url)
        (served.folder / "shard-000000.tar").unlink()
        known = read_link(link)
        assert known is not None
        with pytest.raises(ValueError, match=rf"^{url}: cannot be read: .*404.*no such file"):
            ensure_indexes([link], progress=False)
        with pytest.raises(ValueError, match=rf"^{url}: cannot be read: .*404.*no such file"):
            confirm(link, known)
