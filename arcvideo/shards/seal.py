"""Seals of files that are written once and trusted ever after, so that a flipped bit is never taken for data.

A file is hashed when it is first opened on a machine. That it was whole is remembered by inode, size and time, in this
process and in a folder of the machine's temporary files, so that later runs and other ranks only look.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from arcvideo import seals

_SEAL = "seal"


def digests(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return name -> seal of files, to be stored where `check` will look for them."""
    return {name: seals.seal(folder / name) for name in names}


def check(folder: Path, files: Mapping[str, seals.Seal]) -> None:
    """Compare files with their seals, every byte once a machine.

    Raises:
        Damaged: one is missing, cut or changed.
        OSError: the disk refuses to read.
    """
    seals.check_sizes(folder, files)
    for name, fact in files.items():
        path = folder / name
        facts = path.stat()
        seen = f"{facts.st_dev} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {path.absolute()} {fact['sha256']}"
        memory = hashlib.sha256(seen.encode("utf-8", "surrogateescape")).hexdigest()
        if _recalled(memory):
            seals.remember(path, fact["sha256"])
        seals.check(folder, {name: fact})
        _remember(memory)


def sealed(content: Mapping[str, Any]) -> str:
    """Return the JSON text of an object that tells when it was changed."""
    return json.dumps({**content, _SEAL: _seal(content)})


def unsealed(text: str, *, name: Path) -> dict[str, Any]:
    """Return the object of `sealed`.

    Raises:
        ValueError: it is none, or not as it was written.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop(_SEAL, "") != _seal(content):
        raise ValueError(f"{name}: its content is not what was written")
    return content


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _folder() -> Path | None:
    """Where this machine remembers; None when somebody else could write there."""
    folder = Path(tempfile.gettempdir()) / f"arcvideo-seen-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
        if facts.st_uid == os.getuid() and not facts.st_mode & 0o022 and folder.is_dir():
            return folder
    return None


def _recalled(memory: str) -> bool:
    folder = _folder()
    return folder is not None and (folder / memory).exists()


def _remember(memory: str) -> None:
    folder = _folder()
    if folder is not None and not (folder / memory).exists():
        with suppress(OSError):
            (folder / memory).touch()
