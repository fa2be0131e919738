"""Seals: the size and sha256 of a file that is read again, so that damage is told and not trained on.

A file is hashed when it is first read on a machine. That it was whole is remembered by inode, size and time, in this
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

from arcvideo.files import is_partial, sync, write_whole

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
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not is_partial(path))
    seals = {path.relative_to(folder).as_posix(): seal(path) for path in paths}
    for inner in {folder, *(path.parent for path in paths)}:
        sync(inner)
    return seals


def digest_of(content: Any) -> str:
    """Return the sha256 hex of a JSON-able value; the order of keys does not matter."""
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


def check_once(folder: Path, seals: Mapping[str, Seal]) -> None:
    """As `check`, but a file that was found whole on this machine, and that nobody touched since, is not read again.

    Raises:
        Damaged: one is missing, cut or changed.
        OSError: the disk refuses to read.
    """
    check_sizes(folder, seals)
    for name, fact in seals.items():
        if not _recalled(folder / name, str(fact["sha256"])):
            check(folder, {name: fact})
            _note(folder / name, str(fact["sha256"]))


def check_grown(folder: Path, seals: Mapping[str, Seal]) -> None:
    """As `check`, for files to which rows may have been added since: what was sealed is their beginning.

    Raises:
        Damaged: one is missing, cut, changed or another.
        OSError: the disk refuses to read.
    """
    for name, fact in seals.items():
        if _size(folder, name, fact) < fact["size"]:
            raise Damaged(f"{name} was cut: rows that stood in it are gone")
        if _sha256_of_first(_inside(folder, name), size=fact["size"]) != fact["sha256"]:
            raise Damaged(f"{name} is another, or rows that stood in it were changed")


SUMS = "SHA256SUMS"
"""In a folder of weights: what its files were written with; moves with the folder, `sha256sum --check` reads it."""
_SUFFIX = ".sha256"


def write_sums(folder: Path, *, but: Iterable[str] = ("README.md",)) -> None:
    """Write SHA256SUMS of a folder whose files are complete, last of all.

    Args:
        folder: of weights.
        but: files that people edit and nothing is read from.
    """
    left_out = {SUMS, *but}
    seals = {name: fact for name, fact in seal_folder(folder).items() if name not in left_out}
    write_whole(folder / SUMS, "".join(f"{fact['sha256']}  {name}\n" for name, fact in seals.items()))


def read_sums(path: Path) -> dict[str, str]:
    """Return name -> sha256 hex of a file as `sha256sum` writes it.

    Raises:
        Damaged: it is none.
        OSError: the disk refuses to read.
    """
    sums = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        sha256, _, name = line.decode("utf-8", "surrogateescape").partition("  ")
        if len(sha256) != 64 or sha256.strip("0123456789abcdef") or not name:
            raise Damaged(f"{path.name}, line {number}: no line of sha256sum")
        sums[name] = sha256
    if not sums:
        raise Damaged(f"{path.name} names no file")
    return sums


def check_sums(folder: Path) -> None:
    """Compare a folder of weights with its SHA256SUMS, where it has one; every byte once a machine.

    Raises:
        Damaged: a file is missing or changed.
        OSError: the disk refuses to read.
    """
    if (folder / SUMS).exists():
        for name, sha256 in read_sums(folder / SUMS).items():
            path = _inside(folder, name)
            if not path.is_file():
                raise Damaged(f"{name} is missing")
            check_once(folder, {name: {"size": path.stat().st_size, "sha256": sha256}})


def sidecar(path: Path) -> Path:
    """Return where the digest of a file stands that lies among others: `x.tar.sha256`."""
    return path.with_name(path.name + _SUFFIX)


def publish(scratch: Path, path: Path) -> None:
    """Give a complete file its name, and its digest a place beside it; a stop in between leaves it without digest."""
    fact = seal(scratch)
    sidecar(path).unlink(missing_ok=True)
    os.replace(scratch, path)
    write_whole(sidecar(path), f"{fact['sha256']}  {path.name}\n")


def write_sealed(path: Path, text: str) -> None:
    """Write a file of text, whole, and its digest beside it; a stop in between leaves it without digest."""
    data = text.encode()
    sidecar(path).unlink(missing_ok=True)
    write_whole(path, data)
    write_whole(sidecar(path), f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")


def read_sealed(path: Path) -> bytes:
    """Return the bytes of a file, compared with the digest beside it where there is one.

    Raises:
        Damaged: it was changed since it was written.
        OSError: the disk refuses to read, or nothing is there.
    """
    for last in (False, True):  # another process may write it between the two readings
        data, side = path.read_bytes(), sidecar(path)
        try:
            said = next(iter(read_sums(side).values()), "")
        except FileNotFoundError:
            return data
        except Damaged:
            said = ""
        if said == hashlib.sha256(data).hexdigest():
            return data
        if last:
            break
    raise Damaged(f"{path}: is not the file of {side.name}; restore it, or delete that when the change is meant")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, compared with the digest beside it or with its own `seal`, where it has one.

    Raises:
        Damaged: it is none, or was changed since it was written; one line that names it.
        OSError: the disk refuses to read, or nothing is there.
    """
    try:
        content = json.loads(read_sealed(path))
    except Damaged:
        raise
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: not JSON ({error}); restore it, or delete it") from None
    if not isinstance(content, dict):
        raise Damaged(f"{path}: not an object; restore it, or delete it")
    check_own_seal(content, path=path)
    return content


def check_own_seal(content: Mapping[str, Any], *, path: Path) -> None:
    """Raise Damaged where an object has a `seal` that is not its own."""
    own = content.get("seal")
    if isinstance(own, str) and own != digest_of({name: content[name] for name in content if name != "seal"}):
        raise Damaged(f"{path}: was changed since it was written; restore it, or delete it")


def _sha256_of_first(path: Path, *, size: int) -> str:
    found, left = hashlib.sha256(), size
    with path.open("rb") as file:
        while piece := file.read(min(left, 1 << 20)):
            found.update(piece)
            left -= len(piece)
    return found.hexdigest()


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


def _recalled(path: Path, sha256: str) -> bool:
    """Return whether this machine has found the file as it is now to have that digest."""
    folder = _folder()
    return folder is not None and (folder / _memory(path, sha256)).exists()


def _note(path: Path, sha256: str) -> None:
    folder = _folder()
    if folder is not None:
        with suppress(OSError):
            (folder / _memory(path, sha256)).touch()


def _memory(path: Path, sha256: str) -> str:
    facts = path.stat()
    seen = f"{facts.st_dev} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {path.absolute()} {sha256}"
    return hashlib.sha256(seen.encode("utf-8", "surrogateescape")).hexdigest()


def _folder() -> Path | None:
    """Return where this machine remembers; None when somebody else could write there."""
    folder = Path(tempfile.gettempdir()) / f"arcvideo-seen-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
        if facts.st_uid == os.getuid() and not facts.st_mode & 0o022 and folder.is_dir():
            return folder
    return None


def _inside(folder: Path, name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise Damaged(f"{name!r} is a name outside of {folder}")
    return folder / name


def _check_size(folder: Path, name: str, fact: Seal) -> Path:
    size = _size(folder, name, fact)
    if size != fact["size"]:
        raise Damaged(f"{name} has {size} bytes, it was written with {fact['size']}")
    return _inside(folder, name)


def _size(folder: Path, name: str, fact: Seal) -> int:
    if not isinstance(fact, Mapping) or not isinstance(fact.get("size"), int) or "sha256" not in fact:
        raise Damaged(f"{name} has no size and sha256")
    try:
        return _inside(folder, name).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{name} is missing") from None
