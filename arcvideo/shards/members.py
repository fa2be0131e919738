"""Tar shards as they lie on disk: names, offsets and sizes of their members, read without ever extracting one.

Everything suspicious is a Problem that names the member, never an exception that hides the rest of the shard.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

VIDEO = frozenset({"mp4", "m4v", "mov", "mkv", "webm", "avi"})
AUDIO = frozenset({"wav", "mp3", "m4a", "flac", "ogg", "opus", "aac"})
IMAGE = frozenset({"jpg", "jpeg", "png", "webp", "bmp"})
PICKLED = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "ten"})
"""Members that plain webdataset decoders would unpickle, or hand to a loader that may."""
_BLOCK = 512
_MAX_JSON = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why something in a shard is not used; one row of a quarantine list."""

    key: str
    """Record key, `<record>/<item>`, or the shard's name for damage to the shard itself."""
    stage: str
    """shard, record, item, tokens or media."""
    reason: str
    detail: str = ""
    shard: str = ""
    """File name of the shard."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file inside a tar."""

    name: str
    extension: str
    offset: int
    size: int


@dataclass(kw_only=True)
class Group:
    """Consecutive members with the same key: one record."""

    key: str
    members: list[Member] = field(default_factory=list)


def read_groups(shard: Path) -> tuple[list[Group], list[Problem]]:
    """The records of a tar in order, and what is wrong with its members. Only headers are read.

    A key names one record: when it comes again, the first record is kept and the other is one problem.
    """
    groups: dict[str, Group] = {}
    problems: dict[str, Problem] = {}
    order: list[Group] = []
    last, again = "", False
    for found in _walk(shard, size=shard.stat().st_size):
        if isinstance(found, Problem):
            problems.setdefault(found.key, found)
            continue
        key = record_key(found.name)
        if key not in groups:
            groups[key], again = Group(key=key), False
            order.append(groups[key])
        elif key != last or any(member.extension == found.extension for member in groups[key].members):
            if key != last or not again:
                detail = f"{found.name} comes again at byte {found.offset}; the first record of the key is kept"
                problem = Problem(key=key, stage="record", reason="duplicate_key", detail=detail)
                problems[f"{key}@{found.offset}"] = problem
            again = True
        last = key
        if not again:
            groups[key].members.append(found)
    good = [group for group in order if group.key not in problems]
    return good, list(problems.values())


def record_key(name: str) -> str:
    """The name up to the first dot of its last part, as webdataset groups members."""
    path = PurePosixPath(name)
    base = path.name.split(".", 1)[0]
    return base if str(path.parent) == "." else f"{str(path.parent).rstrip('/')}/{base}"


def _walk(shard: Path, *, size: int) -> Iterator[Member | Problem]:
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                end = tar.offset
                # Hidden files, such as those that macOS puts beside each member, are no records to webdataset either.
                if not info.isdir() and not PurePosixPath(info.name).name.startswith("."):
                    yield _checked(info, size=size)
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header of the shard in memory
    except (tarfile.TarError, OSError, ValueError, UnicodeError, EOFError) as error:
        yield Problem(key=shard.name, stage="shard", reason="broken_tar", detail=f"after byte {end}: {error}")
        return
    # tarfile stops without a word at a damaged header or a missing end, and takes both for the end of the archive.
    with open(shard, "rb") as file:
        file.seek(end)
        mark = file.read(_BLOCK)
    if len(mark) < _BLOCK or mark.strip(b"\0"):
        reason = "broken_tar" if len(mark) == _BLOCK else "truncated_tar"
        detail = f"no end mark after byte {end}: records behind it are lost; write the shard again"
        yield Problem(key=shard.name, stage="shard", reason=reason, detail=detail)


def _checked(info: tarfile.TarInfo, *, size: int) -> Member | Problem:
    """The member, or why it is refused."""
    parts = PurePosixPath(info.name).parts
    extension = PurePosixPath(info.name).name.partition(".")[2].lower()
    kind = extension.rpartition(".")[2]
    key = record_key(info.name)
    if info.name.startswith("/") or ".." in parts or "\\" in info.name or "\0" in info.name:
        return Problem(key=key, stage="record", reason="unsafe_name", detail=f"member {info.name!r}")
    if info.issparse() or not info.isreg():
        return Problem(key=key, stage="record", reason="not_a_file", detail=f"member {info.name!r} is no plain file")
    if kind in PICKLED:
        return Problem(key=key, stage="record", reason="pickled", detail=f"member {info.name!r} could hold a pickle")
    if info.offset_data + info.size > size:
        return Problem(key=key, stage="record", reason="truncated", detail=f"member {info.name!r} is cut short")
    if extension == "json" and info.size > _MAX_JSON:
        return Problem(key=key, stage="record", reason="too_large", detail=f"{info.name!r} has {info.size} bytes")
    return Member(name=info.name, extension=extension, offset=info.offset_data, size=info.size)


def read_at(shard: Path, *, offset: int, size: int) -> bytes:
    """The bytes of a member.

    Raises:
        OSError: the shard cannot be read or ends early.
    """
    with open(shard, "rb", buffering=0) as file:
        file.seek(offset)
        data = file.read(size)
    if data is None or len(data) != size:
        raise OSError(f"{shard}: {size} bytes expected at {offset}; the shard changed since it was indexed")
    return data
