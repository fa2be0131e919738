"""Tar shards as they lie on disk: names, offsets and sizes of their members, read without ever extracting one.

Everything suspicious is a Problem that names the member, never an exception that hides the rest of the shard.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from arcvideo.remote.links import read_link
from arcvideo.remote.reading import opened_stream, read_range
from arcvideo.remote.stream import Stream
from arcvideo.shards.tarwalk import Entry, Gap, walk, walk_bytes

_VIDEO = "mp4 m4v mov qt mkv webm avi gif mpg mpeg m2v vob ts mts m2ts wmv asf flv f4v 3gp 3g2 ogv mxf nut dv media"
_AUDIO = "wav mp3 m4a m4b flac ogg oga opus aac aif aiff aifc wma ac3 amr mka mp2 mpga au caf w64 wv"
_OTHER = "json jsonl txt cls csv tsv srt vtt ass xml html md yaml yml toml log md5 sha256 lab url"
VIDEO = frozenset(_VIDEO.split())
"""`media` is for files whose type nobody knows: like every other, they are what their content says."""
AUDIO = frozenset(_AUDIO.split())
IMAGE = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "avif"})
OTHER = frozenset(_OTHER.split())
"""What stands beside media and is none."""
PICKLED = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "ten"})
"""Members that plain webdataset decoders would unpickle, or hand to a loader that may."""
_MAX_JSON = 64 << 20
_PASSING = {errno.EIO, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}
"""Errors that may pass by themselves, on network file systems above all; a good clip is not given up for one."""
_PAUSES = (0.1, 1.0)
"""Seconds before a read is tried again."""


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
class RecordMembers:
    """Consecutive members with the same key: one record."""

    key: str
    members: list[Member] = field(default_factory=list)


class Grouping:
    """Members of a tar sorted into records as they come."""

    def __init__(self) -> None:
        self._runs: dict[str, list[RecordMembers]] = {}
        self._refused: dict[str, Problem] = {}
        self._problems: list[Problem] = []
        self._last: RecordMembers | None = None

    def add(self, entry: Member | Problem) -> RecordMembers | None:
        """Take in the next member; returns the group that ends before it, if one does."""
        if isinstance(entry, Problem):
            if entry.stage == "shard":
                self._problems.append(entry)
            else:
                self._refused.setdefault(entry.key, entry)
            return None
        key, last = record_key(entry.name), self._last
        if last is not None and last.key == key and all(member.extension != entry.extension for member in last.members):
            last.members.append(entry)
            return None
        self._last = RecordMembers(key=key, members=[entry])
        self._runs.setdefault(key, []).append(self._last)
        return last

    @property
    def last(self) -> RecordMembers | None:
        """The group that may still grow."""
        return self._last

    def records(self) -> tuple[list[RecordMembers], list[Problem]]:
        """Return the groups that are records, in order, and what is wrong with the rest."""
        good, problems = [], list(self._problems)
        for key, groups in self._runs.items():
            if key in self._refused:
                continue
            kept, why = _judged(groups)
            problems += why
            good += kept
        return good, [*self._refused.values(), *problems]


def read_groups(shard: Path) -> tuple[list[RecordMembers], list[Problem]]:
    """Return the records of a tar in order, and what is wrong with its members. Only headers are read.

    A key names one record: when it comes again, the first record is kept and each other one is a problem. A record
    whose members lie apart is one problem, and so is each record that dots in its name cut short.
    """
    link = read_link(shard)
    grouping = Grouping()
    if link is None:
        members = _checked_members(walk(shard), shard=shard, size=shard.stat().st_size)
    else:
        members = streamed_members(opened_stream(shard, link), shard=shard)
    for entry in members:
        grouping.add(entry)
    return grouping.records()


def streamed_members(stream: Stream, *, shard: Path) -> Iterator[Member | Problem]:
    """Yield the members of a remote shard, and what is no member, as the stream comes to them."""
    return _checked_members(walk_bytes(stream.pread, size=stream.size), shard=shard, size=stream.size)


def _judged(groups: list[RecordMembers]) -> tuple[list[RecordMembers], list[Problem]]:
    """Return what is used of the members with one key, in as many groups as they stand together, and why the rest is
    not.
    """
    members = [member for group in groups for member in group.members]
    extensions = [member.extension for member in members]
    dotted = {member.name.rpartition(".")[0]: member for member in members if "." in member.extension}
    if dotted and "json" not in extensions and any(name.endswith(".json") for name in extensions):
        detail = "a key ends at the first dot of a name, so other records have the same; write it with _ for its dots"
        return [], [Problem(key=stem, stage="record", reason="dotted_key", detail=detail) for stem in dotted]
    first = groups[0]
    whole = any(member.extension == "json" for member in first.members) and len(first.members) > 1
    if len(groups) > 1 and not whole and len(set(extensions)) == len(extensions):
        places = ", ".join(f"{member.name} at byte {member.offset}" for member in members)
        detail = f"its members do not stand together ({places}); write the tar with --sort=name"
        return [], [Problem(key=first.key, stage="record", reason="scattered", detail=detail)]
    again = [
        Problem(
            key=group.key,
            stage="record",
            reason="duplicate_key",
            detail=f"{group.members[0].name} comes again at byte {group.members[0].offset}; "
            "the first record of the key is kept",
        )
        for group in groups[1:]
    ]
    return [first], again


def record_key(name: str) -> str:
    """Return the name up to the first dot of its last part, as webdataset groups members."""
    path = PurePosixPath(name)
    base = path.name.split(".", 1)[0]
    return base if str(path.parent) == "." else f"{str(path.parent).rstrip('/')}/{base}"


def _checked_members(walked: Iterable[Entry | Gap], *, shard: Path, size: int) -> Iterator[Member | Problem]:
    for entry in walked:
        if isinstance(entry, Gap):
            yield Problem(key=shard.name, stage="shard", reason=entry.reason, detail=entry.detail)
        # Hidden files, such as those that macOS puts beside each member, are no records to webdataset either.
        elif entry.kind != "folder" and not PurePosixPath(entry.name).name.startswith("."):
            yield _checked(entry, size=size)


def _checked(entry: Entry, *, size: int) -> Member | Problem:
    """Return the member, or why it is refused."""
    path = PurePosixPath(entry.name)
    extension = path.name.partition(".")[2].lower()
    key, shown = record_key(entry.name), as_utf8(entry.name)

    def refused(reason: str, detail: str) -> Problem:
        return Problem(key=as_utf8(key), stage="record", reason=reason, detail=detail)

    if entry.fault:
        return refused("bad_header", f"member {shown!r}: {entry.fault}")
    if shown != entry.name:
        return refused("broken_name", f"member {shown!r}: its name is not UTF-8; write the tar with names that are")
    if path.is_absolute() or ".." in path.parts or "\\" in entry.name or "\0" in entry.name:
        return refused("unsafe_name", f"member {shown!r}")
    if entry.kind != "file":
        return refused("not_a_file", f"member {shown!r} is no plain file")
    if extension.rpartition(".")[2] in PICKLED:
        return refused("pickled", f"member {shown!r} could hold a pickle")
    if entry.offset + entry.size > size:
        return refused("truncated", f"member {shown!r} is cut short")
    if extension == "json" and entry.size > _MAX_JSON:
        return refused("too_large", f"{shown!r} has {entry.size} bytes")
    return Member(name=entry.name, extension=extension, offset=entry.offset, size=entry.size)


def numbered(extension: str) -> tuple[int, str] | None:
    """Return (number, type) of the extension of one of several media, `0.mp4`; None for any other."""
    number, dot, kind = extension.partition(".")
    is_media = kind in VIDEO | IMAGE | AUDIO
    return (int(number), kind) if dot and is_media and number.isascii() and number.isdigit() else None


def as_utf8(text: str) -> str:
    """Return the text with everything that UTF-8 cannot hold written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


class Unreadable(OSError):
    """The disk does not give the bytes of a member, or the shard ends before them: that member alone is lost."""


def read_at(shard: Path, *, offset: int, size: int) -> bytes:
    """Return the bytes of a member.

    Raises:
        Unreadable: these bytes are lost.
        OSError: the shard is not there or may not be read: a folder that is not mounted, permissions, want of memory.
        ValueError: a remote shard changed since it was indexed, or cannot be read after all tries.
    """
    link = read_link(shard)
    if link is not None:
        return read_range(shard, link, offset=offset, size=size)
    for pause in (*_PAUSES, None):
        try:
            data = _read(shard, offset=offset, size=size)
            break
        except OSError as error:
            if error.errno in _PASSING and pause is not None:
                time.sleep(pause)
            elif error.errno == errno.EIO:
                raise Unreadable(error.errno, error.strerror, str(shard)) from None
            else:
                raise
    if len(data) != size:
        raise Unreadable(f"{shard}: {size} bytes expected at {offset}; the shard changed since it was indexed")
    return data


def _read(shard: Path, *, offset: int, size: int) -> bytes:
    with open(shard, "rb") as file:
        file.seek(offset)
        return file.read(size)
