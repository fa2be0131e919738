"""Parts of remote shards that were read, on disk: bounded, the longest unused goes first, and never needed.

A disk that is full or gone costs time, not the run: what cannot be kept is read again from where it came.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
import zlib
from contextlib import suppress
from pathlib import Path

from arcvideo.files import remove_leftovers
from arcvideo.remote.links import is_copy

FOLDER = "members"
_SUFFIX = ".part"
_SHARE_BETWEEN_SCANS = 32
"""A writer counts the folder again after writing this part of the limit: what others wrote, it does not see before."""
_CHECKSUM = 4
"""Bytes behind the content."""


class Held:
    """Ranges by name of the file and place in it; any number of threads and processes may share the folder."""

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self._root, self._limit = root / FOLDER, max_bytes
        self._unscanned = max_bytes  # so that the first write looks at what is there
        self._lock = threading.Lock()
        self._complained = False

    def load(self, name: str, *, offset: int, size: int) -> bytes | None:
        """Return a range, None when it is not there as it was written."""
        path = self._path(name, offset=offset, size=size)
        try:
            data = path.read_bytes()
            content = data[:-_CHECKSUM]
            if len(content) != size or zlib.crc32(content).to_bytes(_CHECKSUM, "big") != data[-_CHECKSUM:]:
                path.unlink()
                return None
        except OSError:
            return None
        with suppress(OSError):  # a folder of somebody else
            os.utime(path)
        return content

    def save(self, name: str, data: bytes, *, offset: int) -> None:
        """Keep a range if that is possible; the first time it is not is told."""
        path = self._path(name, offset=offset, size=len(data))
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            if not self._make_room(len(data) + _CHECKSUM):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(partial, "wb") as file:
                    file.write(data)
                    file.write(zlib.crc32(data).to_bytes(_CHECKSUM, "big"))
                os.replace(partial, path)
            finally:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
        except OSError as error:
            if not self._complained:
                warning = f"data.shard_cache.path={self._root.parent}: nothing more of remote shards is kept: {error}"
                print(f"{warning}; what is needed again is read again", file=sys.stderr)
            self._complained = True

    def _path(self, name: str, *, offset: int, size: int) -> Path:
        return self._root / name / f"{offset}-{size}{_SUFFIX}"

    def _make_room(self, size: int) -> bool:
        """Remove what was not used for longest, so that parts and whole copies with `size` more bytes are below the
        limit; whether they are. A copy may be in use by anybody: copies make way for each other alone.
        """
        with self._lock:
            self._unscanned += size
            if self._unscanned < self._limit // _SHARE_BETWEEN_SCANS:
                return True
            remove_leftovers(self._root.glob("*/.*.partial"))
            files = []
            for path in self._root.glob(f"*/*{_SUFFIX}"):
                with suppress(OSError):  # another process made room too
                    facts = path.stat()
                    files.append((facts.st_mtime_ns, facts.st_size, path))
            total = size + self._limit // _SHARE_BETWEEN_SCANS + sum(file for _, file, _ in files)
            for copy in self._root.parent.iterdir():
                with suppress(OSError):
                    total += copy.stat().st_size if is_copy(copy) else 0
            for _, file, path in sorted(files):
                if total <= self._limit:
                    break
                with suppress(OSError):
                    path.unlink()
                total -= file
            if total > self._limit:
                return False  # and the next looks again
            self._unscanned = 0
            return True
