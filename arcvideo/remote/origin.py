"""Where a remote file comes from: what it is, and ranges of its bytes, over HTTP or through fsspec."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlparse

from arcvideo.remote.patience import SLOWEST, Broken, Refused

FSSPEC = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs"}
"""Scheme -> the package with which fsspec reads it by ranges; no others, some of them unpack what they open."""
_PIECE = 1 << 18
_FSSPEC_PIECE = 8 << 20
_PASSING = {408, 425, 429}
_FIRST = 512
"""Bytes that are asked for to learn what a file is."""
_IDLE: dict[int, deque[Any]] = {}
"""Process -> connections that wait to be used again."""
T = TypeVar("T")


class NoRanges(Exception):
    """The server gives whole files only."""


class Changed(ValueError):
    """A file that is not the one it was."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What tells a file from another one under the same URL."""

    size: int
    etag: str = ""
    modified: str = ""

    def difference(self, other: Identity) -> str:
        """Return what differs of `other`, in words; empty when it is the same file."""
        pairs = [
            (name, getattr(self, name), getattr(other, name))
            for name in ("size", "etag", "modified")
            if getattr(self, name) != getattr(other, name)
        ]
        # Servers behind one name may differ in what they say of the time; an equal ETag is equal bytes.
        if self.etag and self.etag == other.etag and self.size == other.size:
            return ""
        return ", ".join(f"{name} was {then}, is {now or 'not told'}" for name, then, now in pairs)


class Origin(Protocol):
    """A file that can be read by ranges."""

    def identity(self) -> Identity:
        """Return what the file is now.

        Raises:
            Broken, Refused, NoRanges.
        """

    def stream(self, start: int, end: int, *, of: Identity) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `end` as they come.

        Raises:
            Broken: they do not come, or not all.
            Changed: the file is not `of`.
            Refused.
        """


def origin_of(url: str, *, stall_seconds: float) -> Origin | None:
    """Return where a URL can be read by ranges; None when its scheme can only be copied whole.

    Raises:
        ImportError: the package for its scheme is not installed.
    """
    scheme = urlparse(url).scheme
    if scheme in ("http", "https"):
        return _Http(url, stall_seconds)
    return _Fsspec(url, stall_seconds) if scheme in FSSPEC else None


@dataclass(frozen=True)
class _Http:
    url: str
    stall_seconds: float

    def identity(self) -> Identity:
        with _session() as session, self._asked(session, 0, _FIRST) as response:
            if response.status_code == 200:
                raise NoRanges
            identity = _told(response)
            if identity is None:
                raise NoRanges
            for _ in _pieces(response, min(_FIRST, identity.size), stall_seconds=self.stall_seconds):
                pass  # so that the connection can be used again
        return identity

    def stream(self, start: int, end: int, *, of: Identity) -> Iterator[bytes]:
        with _session() as session, self._asked(session, start, end) as response:
            now = _told(response)
            if response.status_code == 416:
                raise Changed("it is shorter than it was")
            if response.status_code == 200:
                raise Broken("the server gives the whole file instead of a part")
            if now is None:
                raise Broken("the server does not say which part of how many bytes it gives")
            if difference := of.difference(now):
                raise Changed(difference)
            if not response.headers["Content-Range"].startswith(f"bytes {start}-"):
                raise Broken(f"the server gives {response.headers['Content-Range']} instead of what was asked for")
            yield from _pieces(response, end - start, stall_seconds=self.stall_seconds)

    def _asked(self, session: Any, start: int, end: int) -> Any:
        import requests

        try:
            response = self._begun(session, {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"})
        except requests.exceptions.TooManyRedirects as error:
            raise Refused("the server sends from one address to the next without end") from error
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise Refused(f"no address: {error}") from error
        except requests.exceptions.SSLError as error:
            raise Refused(f"no safe connection: {error}") from error
        except requests.exceptions.RequestException as error:
            raise _broken(error) from error
        code, packing = response.status_code, response.headers.get("Content-Encoding", "identity")
        if code in (200, 206) and packing.strip().lower() not in ("", "identity"):
            response.close()
            raise Refused(f"the server packs it (Content-Encoding: {packing[:40]}); let it send the file as it is")
        if code in (200, 206, 416):
            return response
        response.close()
        if code in _PASSING or code >= 500:
            raise Broken(f"the server is not able to answer now (HTTP {code})")
        why = {404: "there is no such file", 403: "no permission", 401: "no permission"}.get(code, "")
        raise Refused(f"the server refused it (HTTP {code}{why and ': '}{why})")

    def _begun(self, session: Any, headers: dict[str, str]) -> Any:
        """Return the answer when its head is there; a head can come a sign at a time, which no timeout of a connection
        ends.
        """
        try:
            return _in_time(
                lambda: session.get(self.url, headers=headers, stream=True, timeout=self.stall_seconds),
                seconds=2 * self.stall_seconds,  # to be connected, and to be answered
                late=_close,
            )
        except NotInTime:
            raise Broken("stalled after 0 bytes: no answer in time") from None


def _in_time(ask: Callable[[], T], *, seconds: float, late: Callable[[Future[T]], None] | None = None) -> T:
    """Return what is asked for, or give up. A thread asks that nobody waits for, not at the end of the process either.

    Args:
        ask: may take for ever.
        seconds: to wait.
        late: called with an answer, or an error, that comes after that.

    Raises:
        NotInTime: it took longer.
    """
    asked: Future[T] = Future()

    def work() -> None:
        try:
            asked.set_result(ask())
        except BaseException as error:
            asked.set_exception(error)

    threading.Thread(target=work, name="remote", daemon=True).start()
    try:
        return asked.result(timeout=seconds)
    except NotInTime:
        if late is not None:
            asked.add_done_callback(late)
        raise


def _close(answer: Future[Any]) -> None:
    """Close an answer that nobody waits for any more."""
    if answer.exception() is None:
        answer.result().close()


@contextmanager
def _session() -> Iterator[Any]:
    """Yield connections that nobody else uses meanwhile: those of an earlier answer where there are any, for a new one
    costs several times the way to the server; a forked child opens its own.
    """
    import requests

    idle = _IDLE.setdefault(os.getpid(), deque())
    try:
        session = idle.pop()
    except IndexError:
        session = requests.Session()
    yield session
    idle.append(session)  # after an error nobody knows what still comes over it


def _broken(error: Exception) -> Exception:
    """Return what a failed connection is, in words."""
    text = str(error)
    if "NameResolutionError" in text or "Name or service not known" in text:
        return Broken("the host is unknown")
    if "refused" in text:
        return Broken("the host does not answer")
    if "timed out" in text or "Timeout" in type(error).__name__:
        return Broken("stalled after 0 bytes: no answer in time")
    return Broken("the connection broke off")


def _told(response: Any) -> Identity | None:
    """Return what an answer says of the file; None when it is no part of one."""
    total = re.fullmatch(r"bytes \d{1,18}-\d{1,18}/(\d{1,18})", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or total is None:
        return None
    headers = response.headers
    return Identity(size=int(total[1]), etag=headers.get("ETag", ""), modified=headers.get("Last-Modified", ""))


def _pieces(response: Any, size: int, *, stall_seconds: float) -> Iterator[bytes]:
    """Yield `size` bytes of an answer; only time spent waiting for them counts."""
    from urllib3.exceptions import HTTPError

    got, came, waited = 0, 0, 0.0
    while got < size:
        begun = time.monotonic()
        try:
            piece = response.raw.read1(min(_PIECE, size - got))
        except (HTTPError, OSError) as error:
            if "timed out" in str(error):
                raise Broken(f"stalled after {got} bytes: no answer in time") from error
            how = "the answer ended early" if "IncompleteRead" in str(error) else "the connection broke off"
            raise Broken(f"{how}, after {got} of {size} bytes") from error
        if not piece:
            raise Broken(f"the answer ended early, after {got} of {size} bytes")
        got, came, waited = got + len(piece), came + len(piece), waited + time.monotonic() - begun
        if waited >= stall_seconds:
            if came < SLOWEST * waited:
                raise Broken(f"stalled after {got} bytes: {came} bytes in {waited:.0f} s")
            came, waited = 0, 0.0
        yield piece


class _Fsspec:
    def __init__(self, url: str, stall_seconds: float) -> None:
        from fsspec.core import url_to_fs

        if "::" in url:
            raise Refused("chains of file systems are refused")
        self._files, self._path = url_to_fs(url, use_listings_cache=False)
        self._stall = stall_seconds

    def identity(self) -> Identity:
        facts = self._patient(self._facts)
        etag = next((facts[name] for name in ("ETag", "etag", "blob_id", "oid", "generation") if facts.get(name)), "")
        names = ("LastModified", "last_modified", "updated", "mtime")
        modified = next((facts[name] for name in names if facts.get(name)), "")
        return Identity(size=int(facts["size"]), etag=str(etag), modified=str(modified))

    def stream(self, start: int, end: int, *, of: Identity) -> Iterator[bytes]:
        for at in range(start, end, _FSSPEC_PIECE):
            until = min(at + _FSSPEC_PIECE, end)
            piece = self._patient(lambda at=at, until=until: self._files.cat_file(self._path, start=at, end=until))
            # Asked behind the bytes: whatever changed before they came is seen.
            if difference := of.difference(self.identity()):
                raise Changed(difference)
            if len(piece) != until - at:
                raise Broken(f"{len(piece)} bytes came instead of {until - at}")
            yield piece

    def _facts(self) -> dict[str, Any]:
        self._files.invalidate_cache()
        return dict(self._files.info(self._path))

    def _patient(self, ask: Callable[[], T]) -> T:
        """Return what is asked for, within the time of a stall; file systems have timeouts of their own, or none."""
        try:
            return _in_time(ask, seconds=self._stall)
        except NotInTime as error:
            raise Broken("stalled: no answer in time") from error
        except (FileNotFoundError, PermissionError, NotADirectoryError, ImportError) as error:
            raise Refused(f"the server refused it ({type(error).__name__}: {error})") from error
        except Exception as error:  # each file system has errors of its own
            raise Broken(f"{type(error).__name__}: {error}") from error
