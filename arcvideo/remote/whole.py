"""Copies of remote shards in a folder of bounded size, for servers and schemes that give whole files only; the only
file that imports webdataset's opener.

A copy appears under its name only when it is complete, and its time follows from its content: the index beside it stays
valid when the shard is removed and fetched again, and is made anew when the shard changed. Each process writes what it
reads into a locked lease; what a living process reads is never removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

from arcvideo.processes.locks import NoLocks, held, hold
from arcvideo.progress import counted
from arcvideo.remote.held import FOLDER
from arcvideo.remote.links import is_copy, link_or_none
from arcvideo.remote.patience import SLOWEST, Broken, Patience, Refused
from arcvideo.remote.settings import ShardCacheSettings

os.environ.setdefault("WDS_SECURE", "1")  # plain webdataset would run `pipe:` URLs

_CHUNK = 1 << 20
_END_MARK = 1024
"""Zero bytes that end every tar."""
_CURL = {
    6: "the host is unknown",
    7: "the host does not answer",
    18: "the download ended early",
    22: "the server refused it (HTTP 404 or another error)",
    28: "no answer in time",
    52: "the server closed without an answer",
    56: "the connection broke off",
}
_FINAL = {6, 22}
"""Endings of curl that another try does not change; it repeats what servers call temporary by itself."""
_LEASES: dict[tuple[int, Path], _Lease] = {}


class WholeCopies:
    """Copies of remote shards in a folder; any number of processes may share it.

    The shards count towards `max_gib`, their indexes (kept when a shard goes) and the downloads under way do not.
    """

    def __init__(self, settings: ShardCacheSettings, *, root: Path) -> None:
        self._root = root
        self._limit = int(settings.max_gib * 2**30)
        self._settings = settings

    def fetch(self, url: str, path: Path) -> None:
        """Write the copy of a shard unless it is there; it is kept until this process ends. Its lock must be held.

        Raises:
            ValueError: it cannot be fetched whole, or there is no room for it.
            OSError: the folder cannot be used.
        """
        with locked(self._root / "cache.lock"):
            _lease(self._root).add(path.name)
            if path.is_file() and link_or_none(path) is None:
                os.utime(path, ns=(_now(path), path.stat().st_mtime_ns))
                return
        self._download(url, path)

    def _download(self, url: str, path: Path) -> None:
        partial = path.with_name(f".{path.name}.partial")  # the lock leaves one writer
        try:
            content = self._patient(url, partial)
            with open(partial, "rb") as file:
                file.seek(max(0, partial.stat().st_size - _END_MARK))
                if file.read() != bytes(_END_MARK):
                    raise ValueError(f"{url}: does not end as a tar does: the download is cut short, or no tar file")
            # A time below 2**31 seconds that equal bytes share: file systems differ in what else they can store.
            os.utime(partial, ns=(_now(partial), int.from_bytes(content[:4], "big") // 2 * 10**9))
            with locked(self._root / "cache.lock"):
                self._make_room(partial.stat().st_size, url=url)
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _patient(self, url: str, partial: Path) -> bytes:
        """Write what the URL gives, tried again a bounded number of times; returns its sha256."""

        def copied() -> bytes:
            with open(partial, "wb") as file:
                return _copy(url, file, limit=self._limit, patience=self._settings.stall_seconds)

        return Patience(url, settings=self._settings).answer(copied)

    def _make_room(self, size: int, *, url: str) -> None:
        """Remove what was not used for longest and is in nobody's lease."""
        used = _leased(self._root)
        files = [(path.stat(), path) for path in self._root.iterdir() if is_copy(path)]
        files += [(path.stat(), path) for path in self._root.glob(f"{FOLDER}/*/*.part")]
        total = size + sum(facts.st_size for facts, _ in files)
        for facts, path in sorted(files, key=lambda pair: pair[0].st_atime_ns):
            if total <= self._limit:
                return
            if path.name not in used:
                path.unlink()
                total -= facts.st_size
        if total > self._limit:
            raise ValueError(
                f"{url}: the remote shards in use take {total / 2**30:.3g} GiB, more than "
                f"data.shard_cache.max_gib={self._limit / 2**30:g}; raise it or name fewer shards"
            )


def _copy(url: str, file: IO[bytes], *, limit: int, patience: float) -> bytes:
    """Writes what the URL gives; returns its sha256.

    Args:
        url: of a shard.
        file: empty.
        limit: bytes.
        patience: seconds without progress after which it is given up.
    """
    content, size = hashlib.sha256(), 0
    name = Path(urlparse(url).path).name
    try:
        stream = _open_url(url)
    except (OSError, ValueError) as error:
        raise ValueError(f"{url}: cannot be fetched: {error}") from error
    with counted(what=f"fetch {name}", total=None, unit="B") as advance:
        try:
            for chunk in _chunks(stream, patience=patience):
                size += len(chunk)
                if size > limit:
                    raise ValueError(f"{url}: larger than data.shard_cache.max_gib={limit / 2**30:g}; raise it")
                content.update(chunk)
                file.write(chunk)
                advance(len(chunk))
            stream.close()  # tells how the program behind it ended
        except TimeoutError as error:
            raise Broken(f"stalled after {size} bytes: {error}") from error
        except OSError as error:
            if error.errno is not None:  # of our own disk
                raise
            if _status(error) in _FINAL:
                raise Refused(f"{url}: cannot be fetched: {_reason(error)}") from error
            raise Broken(_reason(error)) from error
        finally:
            _end(stream)
    return content.digest()


def _chunks(stream: Any, *, patience: float) -> Iterator[bytes]:
    """Yield what the program behind a stream writes, as it comes.

    Raises:
        TimeoutError: next to nothing came for `patience` seconds.
    """
    pipe = stream.stream.fileno()
    begun, came = time.monotonic(), 0
    while True:
        rest = begun + patience - time.monotonic()
        if rest <= 0:
            if came < SLOWEST * patience:
                raise TimeoutError(f"{came} bytes in {patience:g} s")
            begun, came = time.monotonic(), 0
            continue
        if not select.select([pipe], [], [], rest)[0]:
            continue
        chunk = os.read(pipe, _CHUNK)
        if not chunk:
            return
        came += len(chunk)
        yield chunk


def _end(stream: Any) -> None:
    """End the program behind a stream, if it is still there."""
    if stream.proc.poll() is None:
        stream.proc.kill()
        with suppress(OSError):
            stream.close()


def _status(error: OSError) -> int:
    match = re.search(r"exit (-?\d+)", str(error))
    return int(match[1]) if match is not None else 0


def _reason(error: OSError) -> str:
    status = _status(error)
    if not status or "curl" not in str(error):
        return str(error)
    return _CURL.get(status, f"its program ended with status {status}")


def _now(path: Path) -> int:
    """Return the file system's own clock, which its other times come from."""
    path.with_name("cache.lock").touch()
    return path.with_name("cache.lock").stat().st_mtime_ns


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made."""
    with open(path, "a") as file:
        hold(file, path=path)
        yield


class _Lease:
    """The names this process reads, in a file that is locked as long as the process lives."""

    def __init__(self, root: Path) -> None:
        self._file = open(root / f"{uuid.uuid4().hex}.lease", "a")  # noqa: SIM115 - open until the process ends
        hold(self._file, path=root / "lease")
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        if name not in self._names:
            self._names.add(name)
            self._file.write(f"{name}\n")
            self._file.flush()


def _lease(root: Path) -> _Lease:
    """Return this process's lease; a forked child makes its own."""
    key = (os.getpid(), root)
    if key not in _LEASES:
        _LEASES[key] = _Lease(root)
    return _LEASES[key]


def _leased(root: Path) -> set[str]:
    """Return the names that living processes read; leases of dead ones are removed. The folder must be locked."""
    names: set[str] = set()
    for path in root.glob("*.lease"):
        with open(path) as file:
            try:
                lives = not held(file, wait=False, shared=True)
            except NoLocks:
                lives = True
            if lives:
                names.update(file.read().splitlines())
            else:
                path.unlink()
    return names


def url_schemes() -> list[str]:
    """Return the schemes of URLs that webdataset opens without running what the URL says."""
    from webdataset.gopen import gopen_schemes

    return sorted(set(gopen_schemes) - {"__default__", "pipe", "file"})


def _open_url(url: str) -> IO[bytes]:
    """Return a remote file as webdataset opens it; reading or closing raises OSError when it did not arrive whole."""
    from webdataset.gopen import gopen

    stream: IO[bytes] = gopen(url)
    return stream
