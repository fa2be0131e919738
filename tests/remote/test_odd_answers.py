"""Answers of servers that no server should give: each is told for what it is, within the time, and is never data."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from arcvideo.remote.links import read_link
from arcvideo.remote.reading import read_range
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.shards import ShardCache

DATA = bytes(range(256)) * 40
Answer = Callable[[socket.socket, int, int], None]


def part(
    to: socket.socket, start: int, end: int, *, says: str | None = None, more: str = "", code: str = "206 Part"
) -> None:
    """Send a part of the data.

    Args:
        says: the Content-Range; None is the right one.
        more: header lines.
    """
    says = f"Content-Range: bytes {start}-{end - 1}/{len(DATA)}\r\n" if says is None else says
    head = f'HTTP/1.1 {code}\r\nContent-Length: {end - start}\r\nETag: "a"\r\n{says}{more}\r\n'
    to.sendall(head.encode() + DATA[start:end])


@contextmanager
def answering(answer: Answer, *, from_the_first: bool = False) -> Iterator[str]:
    """Answer requests with `answer`, the one by which a file is looked at only where that is said."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while (request := connection.recv(1 << 16)) and (wanted := re.search(rb"bytes=(\d+)-(\d+)", request)):
                start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(DATA))
                (answer if from_the_first or start else part)(connection, start, end)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/x.tar"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def drip(to: socket.socket, start: int, end: int) -> None:
    """Send a head that has no end."""
    to.sendall(b"HTTP/1.1 206 Part\r\nX: ")
    while True:
        to.sendall(b"x")
        time.sleep(0.1)


def cache(folder: Path, answer: Answer) -> ShardCache:
    # Only a head without end is waited for; the others come at once, but for a machine that is busy.
    return ShardCache(ShardCacheSettings(path=str(folder), stall_seconds=0.5 if answer is drip else 30.0, retries=1))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda *what: part(*what, says=""), "does not say which part"),
        (lambda *what: part(*what, says=f"Content-Range: bytes {what[1]}-{what[2] - 1}/*\r\n"), "does not say which"),
        (lambda *what: part(*what, says=f"Content-Range: bytes 1-2/{'9' * 5000}\r\n"), "does not say which part"),
        (lambda *what: part(*what, more="Content-Encoding: gzip\r\n"), "packs it (Content-Encoding: gzip)"),
        (lambda *what: part(*what, code="302 Found", more="Location: /x.tar\r\n"), "without end"),
        (drip, "no answer in time"),
    ],
    ids=["no range", "no size", "no number", "packed", "circle", "drip"],
)
def test_an_odd_answer_is_told_and_the_link_stays(tmp_path: Path, answer: Answer, told: str) -> None:
    with answering(answer) as url:
        path = cache(tmp_path, answer).fetch(url)
        link = read_link(path)
        assert link is not None
        with pytest.raises(ValueError, match=re.escape(told)):
            read_range(path, link, offset=100, size=3000)
    assert path.is_file()


@pytest.mark.parametrize("answer", [lambda *what: part(*what, more="Content-Encoding: gzip\r\n"), drip])
def test_a_file_is_looked_at_as_carefully(tmp_path: Path, answer: Answer) -> None:
    with (
        answering(answer, from_the_first=True) as url,
        pytest.raises(ValueError, match=r"packs it|no answer in time"),
    ):
        cache(tmp_path, answer).fetch(url)
