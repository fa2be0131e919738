"""A web server of files with ranges, that misbehaves as it is told."""

from __future__ import annotations

import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[["Handler", bytes], bool]
"""Answers in place of the server with the bytes it would send; returns whether it did."""


@dataclass
class Served:
    """What is served, and what was asked for."""

    address: str
    folder: Path
    ranges: bool = True
    etags: bool = True
    inner: bool = False
    """Whether files in folders are served: the indexes beside shards."""
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of each file."""
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """File, start and end of each request that was answered with bytes."""
    connections: int = 0
    """Opened by clients."""
    faults: list[Fault] = field(default_factory=list)
    """Of the next requests, one each; the first 512 bytes of a file, by which it is looked at, do not count."""
    at_once: int = 0
    most_at_once: int = 0
    seconds: float = 0.0
    """That each answer takes to begin."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def setup(self) -> None:
        super().setup()
        with self.served.lock:
            self.served.connections += 1

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        path = self.served.folder / name
        if not path.is_file() or ("/" in name and not self.served.inner):
            return self.send_error(404)
        data = path.read_bytes()
        start, end, wanted = 0, len(data), self.headers.get("Range")
        if wanted and self.served.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, len(data))
        if start >= len(data):
            return self.send_error(416)
        with self.served.lock:
            self.served.at_once += 1
            self.served.most_at_once = max(self.served.most_at_once, self.served.at_once)
            fault = self.served.faults.pop(0) if self.served.faults and (start, end) != (0, 512) else None
            self.served.asked.append((name, start, end))
        try:
            time.sleep(self.served.seconds)
            if fault is busy:
                return self.send_error(503)
            self.head(data, start=start, end=end, part=bool(wanted and self.served.ranges))
            if fault is None or not fault(self, data[start:end]):
                self.wfile.write(data[start:end])
                self.served.sent[name] += end - start
        except OSError:
            self.close_connection = True
        finally:
            with self.served.lock:
                self.served.at_once -= 1

    def head(self, data: bytes, *, start: int, end: int, part: bool) -> None:
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(end - start))
        if part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        if self.served.etags:
            self.send_header("ETag", f'"{zlib.crc32(data):x}"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def cut(handler: Handler, data: bytes) -> bool:
    """Send half, then close."""
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True
    return True


def drip(handler: Handler, data: bytes) -> bool:
    """Send a byte now and then."""
    for number in range(min(len(data) - 1, 40)):
        handler.wfile.write(data[number : number + 1])
        handler.wfile.flush()
        time.sleep(0.05)
    handler.close_connection = True
    return True


def stall(handler: Handler, data: bytes) -> bool:
    """Send half, then nothing for a while."""
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    time.sleep(1.5)
    handler.close_connection = True
    return True


def busy(handler: Handler, data: bytes) -> bool:
    """Mark an answer as HTTP 503; it has no bytes."""
    return True


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Serve the files of a folder."""
    served = Served(address="", folder=folder)
    handler = type("Serving", (Handler,), {"served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler))
    server.daemon_threads = True
    served.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
