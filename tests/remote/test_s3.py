"""Shards of an S3-compatible server, read through fsspec; needs the optional packages of the extra `s3` and moto."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcvideo.remote.links import read_link
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.shards import ShardCache
from arcvideo.shards.index import ensure_indexes
from tests.data import build

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose shards lie in the bucket of its name too."""
    import fsspec

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # one that knows another server's address
    here = tmp_path / f"clips-{uuid.uuid4().hex}"
    build.shards(here, count=6, per_shard=3)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir(here.name)
    for path in here.glob("*.tar"):
        files.put_file(str(path), f"{here.name}/{path.name}")
    yield here
    running.stop()


def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(ShardCacheSettings(path=str(tmp_path / "cache"), stall_seconds=10.0, retries=1))


@pytest.mark.slow
def test_what_lies_in_a_bucket_is_what_lies_here(bucket: Path, tmp_path: Path) -> None:
    urls = [f"s3://{bucket.name}/shard-00000{number}.tar" for number in range(2)]
    there = ensure_indexes(cache(tmp_path).fetch_all(urls), progress=False)
    here = ensure_indexes(sorted(bucket.glob("*.tar")), progress=False)
    assert [index.digest for index in there] == [index.digest for index in here]
    assert [index.media_bytes(1) for index in there] == [index.media_bytes(1) for index in here]
    link = read_link(there[0].shard)
    assert link is not None
    assert link.identity.etag


@pytest.mark.slow
def test_an_object_that_was_written_over_is_refused(bucket: Path, tmp_path: Path) -> None:
    import fsspec

    url = f"s3://{bucket.name}/shard-000000.tar"
    (index,) = ensure_indexes([cache(tmp_path).fetch(url)], progress=False)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.put_file(str(bucket / "shard-000001.tar"), f"{bucket.name}/shard-000000.tar")
    with pytest.raises(ValueError, match=rf"{url}: changed since it was indexed \(.*etag was"):
        index.media_bytes(0)


@pytest.mark.slow
def test_an_object_that_is_not_there_is_refused(bucket: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.tar: cannot be read: .*FileNotFound"):
        cache(tmp_path).fetch(f"s3://{bucket.name}/nothing.tar")
