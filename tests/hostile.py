"""Servers on this machine that give no whole answer: silent ones, ones that drip, ones that close in the middle."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n"


@contextmanager
def hostile(first: bytes, *, drip: bytes = b"", close: bool = False) -> Iterator[tuple[str, list[float]]]:
    """A server that takes every request, says `first`, then `drip` ten times a second, or closes, or says nothing.

    Yields:
        its address, and when it was asked.
    """
    asked: list[float] = []
    over = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        asked.append(time.monotonic())
        with connection, contextlib.suppress(OSError):
            connection.sendall(first)
            if close:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):  # what is not read when it closes would reset the connection
                    pass
            while not close and not over.wait(0.1):
                connection.sendall(drip)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
    finally:
        over.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
