"""Clips of remote shards in the order of a plan, against what else one would do (`make bench-remote`).

A server in a process of its own answers each request late and sends each answer at a bounded pace, as object stores do.
What is read: members of two shards, anywhere in them, as a plan with a random order or a resumed run asks for them.
The others: copy the shards whole, then read; or webdataset's stream, which gives as many members in the order of the
file and none from elsewhere. Everybody's bytes are compared with the file's first.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import webdataset

from arcvideo.remote.reading import Span, forget, want
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.shards import ShardCache
from arcvideo.shards.members import read_at
from benchmarks.table import Row, interleaved, median_ratio, ratio_spread, report

SHARDS, MEMBERS, READ = 2, 64, 48
MEMBER = 1 << 20
"""Mean bytes of a member: a short clip."""
PACE = 25e6
"""Bytes a second of one answer."""
DELAYS = (0.05, 0.2)
"""Seconds until an answer begins."""
ROUNDS = 3
_PIECE = 1 << 16


class Late(BaseHTTPRequestHandler):
    """Files of a folder, by ranges, late and at a bounded pace."""

    protocol_version = "HTTP/1.1"
    folder: Path
    delay: float

    def do_GET(self) -> None:
        path = self.folder / Path(self.path).name
        size = path.stat().st_size
        first, _, last = self.headers.get("Range", f"bytes=0-{size - 1}").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1, size)
        time.sleep(self.delay)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("ETag", '"1"')
        self.end_headers()
        began = time.monotonic()
        with suppress(ConnectionError), open(path, "rb") as file:  # whoever has enough hangs up
            for place in range(start, end, _PIECE):
                file.seek(place)
                self.wfile.write(file.read(min(_PIECE, end - place)))
                time.sleep(max(0.0, began + (place + _PIECE - start) / PACE - time.monotonic()))

    def log_message(self, *_: object) -> None:
        pass


def _serve(folder: Path, delay: float, ready: Connection) -> None:
    handler = type("Handler", (Late,), {"folder": folder, "delay": delay})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    ready.send(server.server_address[1])
    server.serve_forever()


@contextmanager
def serving(folder: Path, *, delay: float) -> Iterator[str]:
    """Yield the address of a server of a folder."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, delay, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def make_shards(folder: Path) -> dict[str, bytes]:
    """Write shards of random members; their content by name."""
    rng, content = np.random.default_rng(0), {}
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(MEMBERS):
                name = f"{shard}-{number:04d}.mp4"
                content[name] = rng.bytes(int(rng.uniform(0.5, 1.5) * MEMBER))
                info = tarfile.TarInfo(name)
                info.size = len(content[name])
                tar.addfile(info, BytesIO(content[name]))
    return content


def places(folder: Path) -> list[tuple[str, int, int, int]]:
    """Return (name, shard, offset, size) of the members to read, in the order of need."""
    found = []
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:06d}.tar") as tar:
            found += [(member.name, shard, member.offset_data, member.size) for member in tar]
    return [found[place] for place in np.random.default_rng(1).permutation(len(found))[:READ]]


def by_ranges(address: str, wanted: list[tuple[str, int, int, int]], *, ahead: int) -> dict[str, bytes]:
    """Read members as training does."""
    with tempfile.TemporaryDirectory() as cache:
        shards = ShardCache(ShardCacheSettings(path=cache, ahead=ahead))
        paths = shards.fetch_all([f"{address}/{shard:06d}.tar" for shard in range(SHARDS)])
        if ahead:
            want([Span(path=paths[shard], offset=at, size=size) for _, shard, at, size in wanted], limit=ahead)
        read = {name: read_at(paths[shard], offset=at, size=size) for name, shard, at, size in wanted}
        forget(None)
        return read


def by_copies(address: str, wanted: list[tuple[str, int, int, int]]) -> dict[str, bytes]:
    """Copy the shards, all at once, then read."""
    with ThreadPoolExecutor(SHARDS) as threads:
        urls = [f"{address}/{shard:06d}.tar" for shard in range(SHARDS)]
        whole = list(threads.map(lambda url: urlopen(url).read(), urls))
    return {name: whole[shard][at : at + size] for name, shard, at, size in wanted}


def by_stream(address: str) -> dict[str, bytes]:
    """Return the first members of the first shard, as webdataset streams them."""
    dataset = webdataset.WebDataset(f"{address}/000000.tar", shardshuffle=False, empty_check=False)
    return {f"{sample['__key__']}.mp4": sample["mp4"] for sample in itertools.islice(dataset, READ)}


def _seconds(read: Callable[[], dict[str, bytes]], content: dict[str, bytes]) -> float:
    began = time.perf_counter()
    found = read()
    seconds = time.perf_counter() - began
    if len(found) != READ or any(content[name] != data for name, data in found.items()):
        raise SystemExit("a side read other bytes than the file has")
    return seconds


def rows_of(folder: Path, content: dict[str, bytes], *, delay: float) -> list[Row]:
    """Return the rows of one delay."""
    wanted = places(folder)
    with serving(folder, delay=delay) as address:
        sides = {
            "ahead": partial(by_ranges, address, wanted, ahead=ShardCacheSettings().ahead),
            "one by one": partial(by_ranges, address, wanted, ahead=0),
            "copies": partial(by_copies, address, wanted),
            "webdataset": partial(by_stream, address),
        }
        found = interleaved({name: partial(_seconds, read, content) for name, read in sides.items()}, rounds=ROUNDS)
    ours = found.pop("ahead")
    return [
        Row(
            metric=f"{READ} clips, answers after {1000 * delay:.0f} ms, s (baseline: {name})",
            ours=sorted(ours)[ROUNDS // 2],
            baseline=sorted(theirs)[ROUNDS // 2],
            ratio=median_ratio(ours, theirs),
            target=1.0,
            equal=True,
            spread=ratio_spread(ours, theirs),
        )
        for name, theirs in found.items()
    ]


def main() -> int:
    """Measure, print and record."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        content = make_shards(Path(name))
        rows = [row for delay in DELAYS for row in rows_of(Path(name), content, delay=delay)]
    return report(
        "remote",
        rows,
        notes=[
            f"{READ} of {SHARDS * MEMBERS} members of {SHARDS} shards in random order, {MEMBER / 2**20:.0f} MiB each "
            + f"on average; each answer at {PACE / 1e6:.0f} MB/s, the server has no bound of its own",
            "one by one: our ranges without reading ahead; copies: both shards whole, at once, then members from "
            "memory; webdataset: as many members from the front of one shard, in the order of the file, as a stream "
            "gives them",
            "the index of a remote shard, one pass over it, is built once and not in these figures",
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
