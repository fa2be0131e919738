"""An index that lies beside a remote shard is taken over where it is that of the shard, and passed over elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.shards import ShardCache
from arcvideo.shards.columns import FORMAT, TEXTS
from arcvideo.shards.index import ShardIndex, ensure_indexes, index_folder, seal_index
from arcvideo.shards.seal import unsealed
from arcvideo.shards.write import Record, write_shards
from tests.data import build
from tests.remote.server import Served, serving

NAME = "shard-000000.tar"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    build.shards(tmp_path / "served", count=3, per_shard=3)
    with serving(tmp_path / "served") as found:
        found.inner = True
        yield found


def local_index(served: Served) -> ShardIndex:
    """As whoever uploads shards makes it."""
    (index,) = ensure_indexes([served.folder / NAME], progress=False)
    return index


def remote_index(served: Served, cache: Path, query: str = "") -> ShardIndex:
    settings = ShardCacheSettings(path=str(cache), stall_seconds=0.5, retries=0)
    (index,) = ensure_indexes([ShardCache(settings).fetch(f"{served.address}/{NAME}{query}")], progress=False)
    return index


def whole_passes(served: Served) -> int:
    size = (served.folder / NAME).stat().st_size
    return served.asked.count((NAME, 0, size))


@pytest.mark.parametrize("query", ["", "?sig=x"])
def test_an_index_beside_the_shard_spares_the_pass_over_it(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], query: str
) -> None:
    here = local_index(served)
    there = remote_index(served, tmp_path / "cache", query)
    assert whole_passes(served) == 0
    assert served.sent[NAME] < (served.folder / NAME).stat().st_size / 2
    assert (there.digest, there.meta["clips"]) == (here.digest, 3)
    assert TEXTS in there.meta["files"]
    before = len(served.asked)
    assert [there.record(row) for row in range(3)] == [here.record(row) for row in range(3)]
    assert len(served.asked) == before  # from the index
    assert [there.media_bytes(row) for row in range(3)] == [here.media_bytes(row) for row in range(3)]
    assert "not used" not in capsys.readouterr().err


def test_an_index_that_was_made_from_the_remote_shard_is_believed_by_its_etag(served: Served, tmp_path: Path) -> None:
    made = remote_index(served, tmp_path / "first")
    assert whole_passes(served) == 1
    shutil.copytree(made.folder, index_folder(served.folder / NAME))
    sent = served.sent[NAME]
    assert remote_index(served, tmp_path / "second").digest == made.digest
    assert whole_passes(served) == 1
    assert served.sent[NAME] - sent <= 512  # of the look at the shard itself


def other_shard(folder: Path) -> None:
    """Put another shard of the same size in the place of one."""
    data = (folder / NAME).read_bytes()
    text = data.find(b'"answer": "') + len(b'"answer": "')
    (folder / NAME).write_bytes(data[:text] + bytes([data[text] ^ 1]) + data[text + 1 :])


def longer_shard(folder: Path) -> None:
    with open(folder / NAME, "ab") as file:
        file.write(bytes(10240))


def damaged_column(folder: Path) -> None:
    path = index_folder(folder / NAME) / "clips.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


def missing_column(folder: Path) -> None:
    (index_folder(folder / NAME) / "items.npy").unlink()


def no_json(folder: Path) -> None:
    (index_folder(folder / NAME) / "meta.json").write_text("<html>not found</html>")


def nested_json(folder: Path) -> None:
    (index_folder(folder / NAME) / "meta.json").write_text("[" * 100_000)


def _resealed(folder: Path, **changes: object) -> None:
    place = index_folder(folder / NAME)
    meta = unsealed((place / "meta.json").read_text(), name=place)
    seal_index(place, {**{name: value for name, value in meta.items() if name != "files"}, **changes})


def bytes_behind_the_end(folder: Path) -> None:
    path = index_folder(folder / NAME) / "clips.npy"
    rows = np.load(path)
    rows["media_offset"] += 1 << 40
    np.save(path, rows)
    _resealed(folder)


def another_format(folder: Path) -> None:
    _resealed(folder, made_from={"format": FORMAT - 1, "size": (folder / NAME).stat().st_size, "mtime_ns": 1})


def another_etag(folder: Path) -> None:
    size = (folder / NAME).stat().st_size
    _resealed(folder, made_from={"format": FORMAT, "size": size, "etag": '"other"', "modified": ""})


def made_from_nothing(folder: Path) -> None:
    _resealed(folder, made_from=["x"])


@pytest.mark.parametrize(
    "spoil",
    [
        other_shard, longer_shard, damaged_column, missing_column, no_json, nested_json, bytes_behind_the_end,
        another_format, another_etag, made_from_nothing,
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_is_told_and_made_anew(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object
) -> None:
    local_index(served)
    spoil(served.folder)  # type: ignore[operator]
    index = remote_index(served, tmp_path / "cache")
    assert whole_passes(served) == 1
    said = capsys.readouterr().err
    assert said.count("not used, the shard is indexed anew") == 1
    assert f"{NAME}.index/meta.json" in said
    shutil.rmtree(index_folder(served.folder / NAME))
    assert index.digest == local_index(served).digest


def test_a_shard_without_usable_records_has_an_index_to_take_over_too(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    write_shards([Record(key="a", content={"items": [{"task": "caption"}]}, media={})], out=folder)
    with serving(folder) as served:
        served.inner = True
        here = local_index(served)
        there = remote_index(served, tmp_path / "cache")
        assert whole_passes(served) == 0
        assert (there.digest, there.meta["clips"], len(there.problems())) == (here.digest, 0, 1)
