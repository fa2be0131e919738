"""Whole copies of remote shards, from a server without ranges that the test runs itself."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from arcvideo.data.shards import main
from arcvideo.planning.mixture import open_mixture
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.shards import ShardCache
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ensure_indexes, open_index
from tests.data import build

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens http with curl")


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; `short-*` are announced longer than they are. Whether it has ranges is asked first."""

    asked: Counter[str]
    """Not counting that."""

    def do_GET(self) -> None:
        self.asked[Path(self.path).name] += "Range" not in self.headers
        if not Path(self.path).name.startswith("short-"):
            return super().do_GET()
        data = Path(self.directory, Path(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, Counter[str]]]:
    """Address, folder and how often each file was asked for."""
    folder = tmp_path / "served"
    build.shards(folder, count=9, per_shard=3)
    asked: Counter[str] = Counter()
    handler = type("Counting", (Handler,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, asked
    server.shutdown()
    server.server_close()
    thread.join()


def cache(tmp_path: Path, *, max_gib: float = 1.0, retries: int = 8) -> ShardCacheSettings:
    return ShardCacheSettings(path=str(tmp_path / "cache"), max_gib=max_gib, retries=retries)


def test_remote_shards_are_fetched_once_and_hold_what_the_local_ones_hold(
    served: tuple[str, Path, Counter[str]], tmp_path: Path
) -> None:
    address, folder, asked = served
    settings = build.settings(f"{address}/shard-{{000000..000002}}.tar", shard_cache=cache(tmp_path))
    remote = [open_mixture(settings, layout=build.LAYOUT, tokenizer=build.tokenizer())[0] for _ in range(2)]
    assert asked == {f"shard-00000{n}.tar": 1 for n in range(3)}
    local = ensure_indexes(sorted(folder.glob("*.tar")))
    for table in remote:
        assert [index.digest for index in table.indexes] == [index.digest for index in local]
    copies = [index.shard for index in remote[0].indexes]
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in sorted(folder.glob("*.tar"))]


def test_commands_read_remote_shards(
    served: tuple[str, Path, Counter[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{served[0]}/shard-000000.tar"
    assert main(["index", url, "--cache", str(tmp_path / "cache"), "--workers", "0"]) == 0
    assert "3 clips" in capsys.readouterr().out
    assert main(["index", url]) == 2
    assert "data.shard_cache.path" in capsys.readouterr().err


def test_an_index_outlives_its_shard_but_not_a_change_of_it(
    served: tuple[str, Path, Counter[str]], tmp_path: Path
) -> None:
    address, folder, _ = served
    copies = ShardCache(cache(tmp_path))
    path = copies.fetch(f"{address}/shard-000000.tar")
    ensure_indexes([path])
    path.unlink()
    copies.fetch(f"{address}/shard-000000.tar")
    assert open_index(path) is not None
    path.unlink()
    original = folder / "shard-000000.tar"
    original.write_bytes(original.read_bytes().replace(b"number 0", b"number 8"))
    copies.fetch(f"{address}/shard-000000.tar")
    assert open_index(path) is None


@pytest.mark.parametrize(
    ("name", "why"), [("missing.tar", "refused"), ("short-0.tar", "ended early"), ("cut.tar", "does not end")]
)
def test_what_cannot_be_fetched_whole_is_one_error_with_key_and_url(
    served: tuple[str, Path, Counter[str]], tmp_path: Path, name: str, why: str
) -> None:
    address, folder, _ = served
    data = (folder / "shard-000000.tar").read_bytes()
    (folder / "short-0.tar").write_bytes(data)
    (folder / "cut.tar").write_bytes(data[: len(data) // 2])
    settings = build.settings(f"{address}/{name}", shard_cache=cache(tmp_path, retries=2))
    with pytest.raises(ValueError, match=rf"data\.sources\.tiny: shards=.*{address}/{name}: .*{why}"):
        open_mixture(settings, layout=build.LAYOUT, tokenizer=build.tokenizer())
    assert not list((tmp_path / "cache").glob("*.tar*[!h]"))
    assert not list((tmp_path / "cache").glob(".*.partial"))


@pytest.mark.parametrize("url", ["pipe:cat a.tar", "file:///a.tar", "nfs://bucket/a.tar", "http://x/*.tar"])
def test_what_is_no_address_of_a_shard_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shards="):
        expand_shards(url, cache=cache(tmp_path))
    with pytest.raises(ValueError, match="shards="):
        expand_shards(f"{{/nothing.tar,{url}}}", cache=cache(tmp_path))


def test_naming_copies_fetches_nothing(served: tuple[str, Path, Counter[str]], tmp_path: Path) -> None:
    address, _, asked = served
    named = expand_shards(f"{address}/shard-000000.tar", cache=cache(tmp_path), fetch=False)
    assert not asked
    assert not named[0].exists()
    assert expand_shards(f"{address}/shard-000000.tar", cache=cache(tmp_path)) == named


def fetch_elsewhere(url: str, folder: Path) -> str:
    """Fetches in a process that ends; the copy's path."""
    code = (
        "import sys; from arcvideo.remote.shards import ShardCache\n"
        "from arcvideo.remote.settings import ShardCacheSettings\n"
        "print(ShardCache(ShardCacheSettings(path=sys.argv[2])).fetch(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, url, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_longest_unused_goes_first_and_nothing_that_is_in_use(
    served: tuple[str, Path, Counter[str]], tmp_path: Path
) -> None:
    address, folder, _ = served
    urls = [f"{address}/shard-00000{n}.tar" for n in range(3)]
    old, new = (Path(fetch_elsewhere(url, tmp_path / "cache")) for url in urls[:2])
    sizes = sorted((path.stat().st_size for path in folder.glob("*.tar")), reverse=True)
    copies = ShardCache(cache(tmp_path, max_gib=(sizes[0] + sizes[1]) / 2**30))
    kept = copies.fetch(urls[2])
    assert (old.exists(), new.exists(), kept.exists()) == (False, True, True)
    assert copies.fetch(urls[1]) == new
    with pytest.raises(ValueError, match=rf"{urls[0]}: .*in use take .*data\.shard_cache\.max_gib"):
        copies.fetch(urls[0])
    assert new.exists()
    assert kept.exists()
    assert not old.exists()


def test_processes_that_ask_at_the_same_time_get_one_whole_copy(
    served: tuple[str, Path, Counter[str]], tmp_path: Path
) -> None:
    address, folder, asked = served
    url = f"{address}/shard-000000.tar"
    paths: list[str] = []
    threads = [
        threading.Thread(target=lambda: paths.append(fetch_elsewhere(url, tmp_path / "cache"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3
    assert len(set(paths)) == 1
    assert asked["shard-000000.tar"] == 1
    assert Path(paths[0]).read_bytes() == (folder / "shard-000000.tar").read_bytes()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(512)])
def test_a_server_that_says_nothing_more_is_given_up_and_each_try_is_told(
    tmp_path: Path, answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        held: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    held[-1].sendall(answer)

        thread = threading.Thread(target=accept)
        thread.start()
        settings = ShardCacheSettings(path=str(tmp_path / "cache"), stall_seconds=2.0, retries=1)
        with pytest.raises(ValueError, match=r"stalled after \d+ bytes: .* \(2 tries in \d+ s\)"):
            ShardCache(settings).fetch(f"http://127.0.0.1:{server.getsockname()[1]}/a.tar")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in held:
            connection.close()
    assert len(held) == (3 if answer else 2)  # with the look whether there are ranges
    assert capsys.readouterr().err.count("again in 1 s") == 1
    assert not [path for path in (tmp_path / "cache").iterdir() if "partial" in path.name]
