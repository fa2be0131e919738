"""Tables of rows in files that are written piece by piece and mapped ever after: all processes of a machine share the
pages, and opening one takes no longer when it is longer."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from arcvideo.seals import remember
from arcvideo.shards.seal import check, sealed, unsealed

_FACTS = "facts.json"
_NPY_SIZE = 10
"""Bytes of a .npy file before its header: the mark, the version, two bytes of the header's size."""


@dataclass(frozen=True, kw_only=True)
class MappedRows:
    """What was written."""

    rows: Mapping[str, np.ndarray]
    maps: tuple[mmap.mmap, ...]
    """What the rows lie in."""
    facts: Mapping[str, Any]


class RowWriter:
    """Appends rows to files of a folder."""

    def __init__(self, folder: Path, dtypes: Mapping[str, np.dtype[Any]]) -> None:
        self._dtypes = dict(dtypes)
        self._digests = {name: hashlib.sha256() for name in dtypes}
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {name: open(folder / f"{name}.rows", "wb") for name in dtypes}  # noqa: SIM115
        self.facts: dict[str, Any] = {}
        """What is to be known besides, as JSON has it."""

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add rows to a table; they are converted to its dtype."""
        data = np.ascontiguousarray(rows, dtype=self._dtypes[name]).view(np.uint8).data
        self._files[name].write(data)
        self._digests[name].update(data)

    def written(self, name: str) -> np.ndarray:
        """Return the rows of a table so far, mapped."""
        self._files[name].flush()
        return _mapped(self._folder / f"{name}.rows", self._dtypes[name])[0]

    def close(self) -> dict[str, str]:
        """Seal everything; returns the sha256 of each file, so that nobody needs to read it again."""
        files = {}
        for name, file in self._files.items():
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
            file.close()
            files[f"{name}.rows"] = {"size": size, "sha256": self._digests[name].hexdigest()}
        (self._folder / _FACTS).write_text(sealed({"facts": self.facts, "files": files}), encoding="utf-8")
        return {name: str(fact["sha256"]) for name, fact in files.items()}


@contextmanager
def write_rows(folder: Path, dtypes: Mapping[str, np.dtype[Any]]) -> Iterator[RowWriter]:
    """Give a writer; the folder has its name when the block ends, and nothing is left when the block fails."""
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.partial")
    scratch.mkdir(parents=True)
    try:
        writer = RowWriter(scratch, dtypes)
        yield writer
        written = writer.close()
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        os.replace(scratch, folder)
        for name, digest in written.items():
            remember(folder / name, digest)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def open_rows(folder: Path, dtypes: Mapping[str, np.dtype[Any]]) -> MappedRows | None:
    """Return the tables of a folder; None when there are none or they are damaged.

    Every file is compared with its digest, whole once a machine.
    """
    try:
        content = unsealed((folder / _FACTS).read_text(encoding="utf-8"), name=folder / _FACTS)
        check(folder, content["files"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
    with suppress(OSError):  # of somebody else
        os.utime(folder)  # for `forget`
    pairs = {name: _mapped(folder / f"{name}.rows", dtype) for name, dtype in dtypes.items()}
    return MappedRows(
        rows={name: rows for name, (rows, _) in pairs.items()},
        maps=tuple(pages for _, pages in pairs.values() if pages is not None),
        facts=content["facts"],
    )


def forget(root: Path, *, keep: int) -> None:
    """Remove the folders of rows that were not opened for longest, beyond so many; who has them mapped keeps them."""
    folders = sorted(root.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for folder in folders[keep:]:
        shutil.rmtree(folder, ignore_errors=True)


def _mapped(path: Path, dtype: np.dtype[Any]) -> tuple[np.ndarray, mmap.mmap | None]:
    if not path.stat().st_size:
        return np.empty(0, dtype=dtype), None
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(pages, dtype=dtype), pages


def mapped_npy(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """Return the rows of a file that `np.save` wrote, mapped.

    The dtype is known to whoever asks, and files are sealed: reading it from each of thousands of headers costs more
    than reading the rows.
    """
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = _NPY_SIZE + int.from_bytes(pages[_NPY_SIZE - 2 : _NPY_SIZE], "little")
    if pages[:8] != b"\x93NUMPY\x01\0" or (len(pages) - start) % dtype.itemsize:
        raise OSError(f"{path}: no column of rows of {dtype.itemsize} bytes")
    return np.frombuffer(pages, dtype=dtype, offset=start) if len(pages) > start else np.empty(0, dtype=dtype)
