"""Files that are there whole or as they were, and JSON lines."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import sys
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of the operating system for want of room: a full disk, a used-up quota, the limit on the size of a file."""
BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT})
"""Errors of a disk that is broken or gone, which no setting is to blame for."""


_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "choose a {key} that can be written",
    errno.EACCES: "change its permissions, or choose another {key}",
    errno.EPERM: "change its permissions, or choose another {key}",
    errno.ENOTDIR: "remove the file that stands where a folder shall be, or choose another {key}",
    errno.EEXIST: "remove the file that stands where a folder shall be, or choose another {key}",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "repair the disk",
    errno.ESTALE: "mount the folder again",
    errno.ENOTCONN: "mount the folder again",
}
"""Error of the operating system -> what to do before the same command is started again."""


def error_number(error: Exception) -> int | None:
    """Return the number of what the operating system refused; None of an error of another kind."""
    if isinstance(error, ValueError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))  # how the writer of tensors says it
    return int(match[1]) if match is not None else None


def error_line(
    error: Exception,
    *,
    folder: Path | None = None,
    key: str = "folder",
    then: str = ", then the same command continues",
) -> str:
    """Return an error in one line; what the operating system says names a file where it knows it, and the remedy.

    Args:
        error: any.
        folder: named where the error names no file.
        key: the setting that says where is written.
        then: what happens once the remedy was taken.
    """
    number = error_number(error)
    if number is None:
        return str(error) or type(error).__name__
    where = getattr(error, "filename", None) or folder
    remedy = _REMEDIES.get(number, "").format(key=key)
    what = f"{os.strerror(number)}{f'; {remedy}{then}' if remedy else ''}"
    return f"{where}: {what}" if where else what


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what the block writes there gets its name when the block ends.

    It is on the disk before it gets the name, so that a crash, too, leaves the new file or the old one. When the block
    fails, nothing is left of it; what a killed process left in the folder is removed by the next one that writes there.
    Several processes may write the same file; the last one wins.
    """
    _remove_dead(path.parent)
    temporary = path.with_name(f".{path.name}.{_machine()}{uuid.uuid4().hex[:8]}.partial")
    try:
        with temporary.open("xb") as held:
            _lock(held.fileno())  # for as long as this process lives
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # A full disk is told without a name, others with that of the temporary file.
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    sync(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that is there whole or as it was; text as UTF-8."""
    with whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def is_partial(path: Path) -> bool:
    """Return whether a file is under way, or was when its writer was killed; nobody reads it."""
    return path.name.startswith(".") and path.name.endswith(".partial")


_PARTIAL = re.compile(r"\..+\.([0-9a-f]{4})[0-9a-f]{8}\.partial")
"""Name of a file that `whole` has under way, with the mark of its machine."""
_looked_into: set[Path] = set()


def _remove_dead(folder: Path) -> None:
    """Remove what killed processes left of `whole` in a folder; a process looks once into each.

    Of processes on this machine the lock tells which live, of those on others the age of the file.
    """
    if folder in _looked_into:
        return
    _looked_into.add(folder)
    with suppress(OSError):
        names = [name for name in os.listdir(folder) if name.endswith(".partial")]
        for name, match in ((name, _PARTIAL.fullmatch(name)) for name in names):
            if match and match[1] == _machine():
                _unlink_dead(folder / name)
            elif match:
                remove_leftovers([folder / name])


def _unlink_dead(path: Path) -> None:
    with suppress(OSError), path.open("rb") as file:
        free = _lock(file.fileno())
        if free:
            path.unlink()
        elif free is None:
            remove_leftovers([path])


def _lock(file: int) -> bool | None:
    """Lock an open file; False when another has it, None on a disk without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@cache
def _machine() -> str:
    """Return a mark of this machine since it was started, four hex digits."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    name = f"{os.uname().nodename} {boot.read_text() if boot.exists() else ''}"
    return f"{zlib.crc32(name.encode()) & 0xFFFF:04x}"


_DEAD = 3600.0
"""Seconds after which a file that is being written without anybody writing to it was left by a process that ended."""


def remove_leftovers(partials: Iterable[Path]) -> None:
    """Remove of these temporary files those that killed processes left."""
    for path in partials:
        with suppress(OSError):  # its writer gave it its name, or it is somebody else's
            if time.time() - path.stat().st_mtime > _DEAD:
                path.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


CHECK = "crc32"
"""Field of a row that is read again and decides something: the CRC-32 of the rest of it, 8 hex digits."""


def json_line(row: Mapping[str, Any], *, checked: bool = False) -> str:
    """Return one row of a file of JSON lines, with its end; ASCII, so that no text in it can end a line or be refused.

    U+2028 ends a line for `str.splitlines`, and half of a surrogate pair cannot be written as UTF-8.

    Args:
        row: JSON-able.
        checked: with a `crc32` field, by which `read_lines` tells a row that was damaged since; it takes the field out.
    """
    return json.dumps({**row, CHECK: _crc(row)} if checked else row) + "\n"


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]], *, checked: bool = False) -> None:
    """Write a file of JSON lines, whole; `checked` as in `json_line`."""
    with whole(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.writelines(json_line(row, checked=checked) for row in rows)


_TORN = "{name}: its last row was cut short when a process stopped; left out"
Fields = Mapping[str, type | tuple[type, ...]]
"""Name -> type of what every row must have."""


def read_lines(path: Path, *, fields: Fields | None = None) -> list[Any]:
    r"""Return the rows of a file of JSON lines, which end in "\n" and nothing else.

    A row that a stop cut short can only be the last one; it is left out, and stderr says so.

    Args:
        path: the file.
        fields: what every row must be an object with; None takes rows of any kind.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row that is not JSON, lacks a field or was damaged; names the file and the line.
    """
    return parsed_lines(path.read_bytes(), name=str(path), fields=fields)


def parsed_lines(data: bytes, *, name: str, fields: Fields | None = None) -> list[Any]:
    """Return the rows of JSON lines that were read already; `name` stands for them in messages, as in `read_lines`."""
    *lines, rest = data.split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    rows = [_row(line, name=f"{name}, line {number}", fields=fields) for number, line in numbered]
    if rest.strip():
        try:
            rows.append(_row(rest, name=name, fields=fields))
        except ValueError:
            print(_TORN.format(name=name), file=sys.stderr)
    return rows


def cut_torn_row(path: Path) -> None:
    """Cut off what stands behind the last line end of a file of JSON lines, and say so: then rows can be added."""
    with path.open("rb+") as file:
        size = start = file.seek(0, os.SEEK_END)
        end = 0
        while start and not end:
            stop, start = start, max(0, start - 65536)
            file.seek(start)
            place = file.read(stop - start).rfind(b"\n")
            end = start + place + 1 if place >= 0 else 0
        if end < size:
            file.truncate(end)
            print(_TORN.format(name=path), file=sys.stderr, flush=True)


def _row(line: bytes, *, name: str, fields: Fields | None) -> Any:
    try:
        row = json.loads(line.decode("utf-8", errors="surrogatepass"))
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name}: not JSON ({reason}); repair the line, or delete it") from None
    if isinstance(row, dict) and not _is_as_written(row):
        raise ValueError(f"{name}: was changed since it was written; delete the line, what it says is found out anew")
    if fields is None:
        return row
    if not isinstance(row, dict):
        raise ValueError(f"{name}: not an object like the others; repair the line, or delete it")
    for field, kind in fields.items():
        # For JSON true is no number.
        if not isinstance(row.get(field), kind) or (isinstance(row[field], bool) and kind is not bool):
            raise ValueError(f"{name}: {field!r} is missing or of another kind; repair the line, or delete it")
    return row


def _is_as_written(row: dict[str, Any]) -> bool:
    """Take the checksum out of a row, where it has one; whether it is that of the rest."""
    if CHECK in row:
        return bool(row.pop(CHECK) == _crc(row))
    if not row:
        return True
    *rest, (_, last) = row.items()
    return bool(last != _crc(dict(rest)))  # the name of the checksum itself was hit


def _crc(row: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(row).encode()):08x}"
