"""Remote shards: fetched whole through webdataset's opener into a folder of bounded size.

A copy appears under its name only when it is complete, and its time follows from its content: the index beside it stays
valid when the shard is removed and fetched again, and is made anew when the shard changed. Each process writes what it
reads into a locked lease; what a living process reads is never removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import select
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

from arcvideo.media.settings import ShardCacheSettings
from arcvideo.progress import counted
from arcvideo.shards.write import open_url, url_schemes

_CHUNK = 1 << 20
_END_MARK = 1024
"""Zero bytes that end every tar."""
_SLOWEST = 1 << 10
"""Bytes a second below which a download counts as stalled."""
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


def is_url(name: str) -> bool:
    """Return whether a shard's name is to be fetched."""
    return "://" in name


class ShardCache:
    """Copies of remote shards in a folder; any number of processes may share it.

    The shards count towards `max_gib`, their indexes (kept when a shard goes) and the downloads under way do not.
    """

    def __init__(self, settings: ShardCacheSettings) -> None:
        """Open the folder; it is made when something is fetched.

        Raises:
            ValueError: no folder is set.
        """
        if settings.path is None:
            raise ValueError("remote shards need a folder for their copies: set data.shard_cache.path")
        self._root = Path(settings.path).expanduser().absolute()
        self._limit = int(settings.max_gib * 2**30)
        self._settings = settings

    def path(self, url: str) -> Path:
        """Return where the copy of a shard lies, or will lie.

        Raises:
            ValueError: no URL that a shard can be fetched from.
        """
        scheme = urlparse(url).scheme
        if scheme not in url_schemes():
            hint = "; webdataset opens s3:// when USE_AIS_FOR=s3 is set and `ais` installed" if scheme == "s3" else ""
            raise ValueError(f"{url}: {scheme}:// cannot be opened{hint}; use one of {', '.join(url_schemes())}")
        name = re.sub(r"[^\w.-]", "_", Path(urlparse(url).path).name) or "shard.tar"
        return self._root / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"

    def fetch(self, url: str) -> Path:
        """Return the copy of a shard, fetched unless it is there; kept until this process ends.

        Raises:
            ValueError: it cannot be fetched whole, or there is no room for it.
        """
        path = self.path(url)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_name(f"{path.name}.fetch")):
                with _locked(self._root / "cache.lock"):
                    _lease(self._root).add(path.name)
                    if path.is_file():
                        os.utime(path, ns=(_now(path), path.stat().st_mtime_ns))
                        return path
                self._download(url, path)
        except OSError as error:  # a full disk, a folder of somebody else
            raise ValueError(f"data.shard_cache.path={self._root}: cannot be used: {error}") from error
        return path

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
            with _locked(self._root / "cache.lock"):
                self._make_room(partial.stat().st_size, url=url)
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _patient(self, url: str, partial: Path) -> bytes:
        """Write what the URL gives, tried again a bounded number of times; returns its sha256."""
        for tried in range(self._settings.retries + 1):
            with open(partial, "wb") as file:
                try:
                    return _copy(url, file, limit=self._limit, patience=self._settings.stall_seconds)
                except _BrokenOff as error:
                    if error.final or tried == self._settings.retries:
                        often = f" ({tried + 1} tries)" if tried else ""
                        raise ValueError(f"{url}: cannot be fetched: {error}{often}") from error
                    print(f"{url}: {error}; again in {2**tried} s", file=sys.stderr)
            time.sleep(2**tried)
        raise AssertionError("unreachable")

    def _make_room(self, size: int, *, url: str) -> None:
        """Remove what was not used for longest and is in nobody's lease."""
        used = _leased(self._root)
        files = [(path.stat(), path) for path in self._root.glob("*.tar*") if path.is_file() and _is_copy(path)]
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


class _BrokenOff(Exception):
    """A download that did not arrive."""

    def __init__(self, detail: str, *, final: bool) -> None:
        super().__init__(detail)
        self.final = final
        """Whether another try would end the same."""


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
        stream = open_url(url)
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
            raise _BrokenOff(f"stalled after {size} bytes: {error}", final=False) from error
        except OSError as error:
            if error.errno is not None:  # of our own disk
                raise
            raise _BrokenOff(_reason(error), final=_status(error) in _FINAL) from error
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
            if came < _SLOWEST * patience:
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


def _is_copy(path: Path) -> bool:
    return re.match(r"[0-9a-f]{16}-", path.name) is not None and not path.name.endswith((".lock", ".fetch", ".index"))


def _now(path: Path) -> int:
    """Return the file system's own clock, which its other times come from."""
    path.with_name("cache.lock").touch()
    return path.with_name("cache.lock").stat().st_mtime_ns


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Lease:
    """The names this process reads, in a file that is locked as long as the process lives."""

    def __init__(self, root: Path) -> None:
        self._file = open(root / f"{uuid.uuid4().hex}.lease", "a")  # noqa: SIM115 - open until the process ends
        fcntl.flock(self._file, fcntl.LOCK_EX)
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
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                names.update(file.read().splitlines())
                continue
            path.unlink()
    return names
