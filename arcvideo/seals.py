"""Seals: the size and sha256 of a file that is read again, so that damage is told and not trained on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arcvideo.files import sync

Seal = Mapping[str, Any]
"""`size` in bytes and `sha256` in hex of one file."""


class Damaged(ValueError):
    """A file that is not what its seal says; one line that names it and what is wrong with it."""


def seal(path: Path) -> dict[str, Any]:
    """Sync a file and return its seal."""
    sync(path)
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def seal_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Sync and seal every file of a folder, sub-folders included; return relative name -> seal."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    seals = {path.relative_to(folder).as_posix(): seal(path) for path in paths}
    for inner in {folder, *(path.parent for path in paths)}:
        sync(inner)
    return seals


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the sha256 hex of a JSON-able mapping; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_sizes(folder: Path, seals: Mapping[str, Seal]) -> None:
    """Compare the sizes of a folder's files with their seals: what every reader can afford.

    Raises:
        Damaged: a file is missing or has another size.
        OSError: the disk refuses.
    """
    for name, fact in seals.items():
        _check_size(folder, name, fact)


def check(folder: Path, seals: Mapping[str, Seal]) -> None:
    """Compare a folder's files with their seals, every byte; a file is read once as long as nobody changes it.

    Args:
        folder: where the files lie.
        seals: relative name -> seal.

    Raises:
        Damaged: a file is missing, cut or changed.
        OSError: the disk refuses to read.
    """
    for name, fact in seals.items():
        path = _check_size(folder, name, fact)
        if sha256_of(path) != fact["sha256"]:
            raise Damaged(f"{name} was changed: its sha256 is not the one it was written with")


_MOST_REMEMBERED = 65536
_remembered: dict[tuple[str, int, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """Return the sha256 hex of a file's bytes; read again only when its inode, size or time have changed."""
    key = _key(path)
    if key not in _remembered:
        with path.open("rb") as file:
            remember(path, hashlib.file_digest(file, "sha256").hexdigest())
    return _remembered[key]


def remember(path: Path, sha256: str) -> None:
    """Note the digest of a file that was just written or read, so that nobody in this process reads it again."""
    if len(_remembered) >= _MOST_REMEMBERED:
        _remembered.clear()
    _remembered[_key(path)] = sha256


def forget(folder: Path) -> None:
    """Read the files of a folder again the next time somebody asks for their digests."""
    inside = f"{folder.absolute()}{os.sep}"
    for key in [key for key in _remembered if key[0].startswith(inside)]:
        del _remembered[key]


def _key(path: Path) -> tuple[str, int, int, int]:
    facts = path.stat()
    return str(path.absolute()), facts.st_ino, facts.st_size, facts.st_mtime_ns


def _check_size(folder: Path, name: str, fact: Seal) -> Path:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise Damaged(f"{name!r} is a name outside of {folder}")
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{name} is missing") from None
    if size != fact["size"]:
        raise Damaged(f"{name} has {size} bytes, it was written with {fact['size']}")
    return path
