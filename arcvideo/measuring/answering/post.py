"""One HTTP request with one deadline over all of it: a server that is silent, drips or breaks off holds nobody."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import urllib.error
import urllib.request
from functools import partial
from types import TracebackType
from typing import Any

from arcvideo.hidden import hidden

MOST_BYTES = 64 << 20
"""Of an answer."""
_SHOWN = 300
"""Bytes of a refusal that are told."""


class Unanswered(OSError):
    """There is no answer; the message says why, in one line."""

    def __init__(self, reason: str, *, status: int = 0) -> None:
        super().__init__(hidden(" ".join(reason.split())))
        self.status = status
        """The HTTP status of a refusal; 0 when no whole answer came."""


def post_json(request: urllib.request.Request, *, seconds: float) -> Any:
    """Send a request and return the JSON it is answered with.

    Args:
        request: whole, with its body.
        seconds: from the connection to the last byte of the answer. A time limit of sockets would count anew with every
            byte, so that a server that drips holds its caller for days.

    Raises:
        Unanswered: refused, silent, too slow, broken off, or no JSON.
    """
    with _Deadline(seconds) as deadline:
        opener = urllib.request.build_opener(_Http(deadline), _Https(deadline))
        try:
            with opener.open(request, timeout=seconds) as reply:
                data = reply.read(MOST_BYTES + 1)
                expected = int(reply.headers.get("Content-Length") or len(data))
        except urllib.error.HTTPError as error:
            said = b""
            with contextlib.suppress(OSError, http.client.HTTPException):
                said = error.read(_SHOWN)
            raise Unanswered(f"status {error.code}: {said.decode(errors='replace')}", status=error.code) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            if deadline.over or isinstance(getattr(error, "reason", error), TimeoutError):
                raise Unanswered(f"no whole answer within {seconds:g} s") from None
            raise Unanswered(f"broken off: {str(error) or type(error).__name__}") from None
    if deadline.over:
        raise Unanswered(f"no whole answer within {seconds:g} s")
    if len(data) > MOST_BYTES:
        raise Unanswered(f"an answer of more than {MOST_BYTES >> 20} MiB")
    if len(data) < expected:
        raise Unanswered(f"broken off after {len(data)} of {expected} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Unanswered(f"an answer that is no JSON: {data[:_SHOWN].decode(errors='replace')}") from None


class _Deadline:
    """Shuts the connections made under it when the time is over, whatever they are waiting for."""

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._lock, self._sockets = threading.Lock(), list[socket.socket]()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def watch(self, connection: socket.socket) -> None:
        """Shut this one, too."""
        with self._lock:
            self._sockets.append(connection)
        if self.over:
            self._end()

    def _end(self) -> None:
        self.over = True
        with self._lock, contextlib.suppress(OSError):
            for connection in self._sockets:
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # below TLS, which another thread is reading


class _Connection(http.client.HTTPConnection):
    def __init__(self, *args: Any, deadline: _Deadline, **more: Any) -> None:
        super().__init__(*args, **more)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self._deadline.watch(self.sock)


class _Secure(_Connection, http.client.HTTPSConnection):
    """The same under TLS: the deadline watches what the connection below has made."""


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(_Connection, deadline=self._deadline), req)  # type: ignore[arg-type]


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(_Secure, deadline=self._deadline), req)  # type: ignore[arg-type]
