"""Links to remote shards: where they are followed, and where not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.shards import ShardCache
from arcvideo.shards.index import ensure_indexes
from tests.data import build
from tests.remote.server import serving


def test_a_link_that_came_with_the_data_is_not_followed(tmp_path: Path) -> None:
    build.shards(tmp_path / "served", count=3, per_shard=3)
    mine, damaged = tmp_path / "data" / "train.tar", tmp_path / "data" / "cut.tar"
    mine.parent.mkdir()
    with serving(tmp_path / "served") as served:
        url = f"{served.address}/shard-000000.tar"
        link = ShardCache(ShardCacheSettings(path=str(tmp_path / "cache"))).fetch(url)
        shutil.copy(link, mine)
        damaged.write_bytes(link.read_bytes()[:-9])
        asked = len(served.asked)
        for path, why in ((mine, f"no shard, but a link to {url}"), (damaged, "a damaged link")):
            with pytest.raises(ValueError, match=f"^{path}: {why}"):
                ensure_indexes([path], progress=False)
        assert len(served.asked) == asked
