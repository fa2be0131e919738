"""Writing shards: tars as webdataset writes them, in which media are copied a piece at a time."""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from arcvideo.files import sync
from arcvideo.media.read import media_digest
from arcvideo.progress import watched
from arcvideo.seals import publish, remember
from arcvideo.shards.index import ShardIndex
from arcvideo.shards.members import AUDIO, IMAGE, VIDEO, RecordMembers, numbered, read_at, read_groups, record_key
from arcvideo.tasks import RecordError

_OWNER, _MODE = "bigdata", 0o444
"""Of every member; webdataset's own, so that shards are byte for byte what its writer makes of the same records."""


class Content(Protocol):
    """A media file that is copied when its record is written."""

    @property
    def size(self) -> int:
        """Bytes."""

    def pieces(self) -> Iterator[bytes]:
        """Yield the `size` bytes from the first to the last; what it raises takes the whole record back."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record to be written."""

    key: str
    """Unique in the data set, without dots."""
    content: Mapping[str, Any]
    """The JSON object: `items` and what else is worth keeping."""
    media: Mapping[str, bytes | Content]
    """Extension -> bytes: at most one picture and one sound; several media are numbered by their place, `0.mp4`,
    `1.jpg`; empty for text only."""
    confirm: Callable[[], None] | None = None
    """Called when all is copied; what it raises takes the record back."""


class ShardWriter:
    """One shard under a hidden name; it gets its own when it is complete. What fails half-way leaves nothing of it."""

    def __init__(self, path: Path) -> None:
        """Begin a shard; what a stop left of it under the hidden name is written over."""
        self.path, self.scratch = path, scratch_of(path)
        self.records, self.size = 0, 0
        self._digest = hashlib.sha256()
        self._file = open(self.scratch, "wb", buffering=0)  # noqa: SIM115 - open until it is complete

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            self._file.close()
            self.scratch.unlink(missing_ok=True)

    def add(self, record: Record) -> None:
        """Append a record, whole or not at all.

        Raises:
            ValueError: a key or an extension that cannot be read back.
            OSError: the disk refuses.
        """
        members, before, digest = _members(record), self.size, self._digest.copy()
        try:
            for name in sorted(members):
                self._copy(f"{record.key}.{name}", members[name])
            if record.confirm is not None:
                record.confirm()
        except BaseException:
            self.size, self._digest = before, digest
            self._file.seek(before)
            self._file.truncate()
            raise
        self.records += 1

    def complete(self) -> dict[str, Any]:
        """End the shard, still under its hidden name and on the disk; returns its `size` and `sha256`."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._write(bytes(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - self.size))
        self._file.close()
        sync(self.scratch)
        remember(self.scratch, self._digest.hexdigest())  # so that nobody reads it again
        return {"size": self.size, "sha256": self._digest.hexdigest()}

    def publish(self) -> None:
        """Give the complete shard its name, and its digest a place beside it."""
        publish(self.scratch, self.path)

    def _copy(self, name: str, content: bytes | Content) -> None:
        size = len(content) if isinstance(content, bytes) else content.size
        self._write(_header(name, size=size))
        for piece in [content] if isinstance(content, bytes) else content.pieces():
            self._write(piece)
        self._write(bytes(-size % tarfile.BLOCKSIZE))

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:  # a disk that is nearly full takes a part
            left = left[self._file.write(left) :]
        self._digest.update(data)
        self.size += len(data)


def scratch_of(path: Path) -> Path:
    """Return the hidden name under which a shard is written."""
    return path.with_name(f".{path.name}.partial")


def _header(name: str, *, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, _MODE, _OWNER, _OWNER
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def tar_size(key: str, sizes: Mapping[str, int]) -> int:
    """Return the bytes that a record takes in a shard.

    Args:
        key: of the record.
        sizes: extension -> bytes of each of its files, the JSON among them.
    """
    padded = (size + -size % tarfile.BLOCKSIZE for size in sizes.values())
    return sum(len(_header(f"{key}.{name}", size=size)) for name, size in sizes.items()) + sum(padded)


def room_of_end() -> int:
    """Return the bytes that end a shard, at most."""
    return 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE


def copied(index: ShardIndex, row: int, *, groups: Mapping[str, RecordMembers]) -> Record:
    """Return a record as it lies in a shard, to be written into another one, where it is sealed anew.

    Args:
        index: of the shard.
        row: of the record.
        groups: key -> members, as `read_groups` finds them.

    Raises:
        RecordError: `corrupt`: its JSON or its media are not those that were indexed.
        OSError: the shard cannot be read.
    """
    key, content = index.key(row), index.record(row)
    found = [member for member in groups[key].members if member.extension != "json"] if key in groups else []
    media = {member.extension: read_at(index.shard, offset=member.offset, size=member.size) for member in found}
    places = {member.offset: media[member.extension] for member in found}
    for medium in index.media(row):
        sound = places.get(int(medium["sound_offset"])) if medium["sound_size"] else None
        data = places.get(int(medium["media_offset"]), b"")
        if media_digest(data, sidecar_audio=sound) != bytes(medium["digest"]):
            detail = f"{key} in {index.shard.name}: its media are not those that were indexed"
            raise RecordError("corrupt", f"{detail}; restore the shard, `arcvideo verify {index.shard}` checks it")
    return Record(key=key, content=content, media=media)


def copies(index: ShardIndex) -> Iterator[tuple[int, Record]]:
    """Yield the row and the record of each clip of a shard, as `copied` does; the damaged ones are told and left out.

    Raises:
        OSError: the shard cannot be read.
    """
    groups = {group.key: group for group in read_groups(index.shard)[0]}
    for row in watched(range(len(index.clips)), what=index.shard.name, total=len(index.clips), unit="clip"):
        try:
            record = copied(index, row, groups=groups)
        except RecordError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        yield row, record


def json_text(content: Mapping[str, Any], *, has_media: bool) -> bytes:
    """Return a record's JSON as it stands in the shard."""
    whole = dict(content) if has_media else {**content, "text_only": True}
    return json.dumps(whole, ensure_ascii=False, default=_plain).encode()


def write_shards(
    records: Iterable[Record],
    *,
    out: Path,
    name: str = "shard",
    per_shard: int = 1000,
    bytes_per_shard: int = 1 << 30,
    first: int = 0,
    finished: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Write `out/<name>-000000.tar`, ... as the records come; equal records give equal bytes. Returns the paths.

    A shard is full after `per_shard` records or about `bytes_per_shard` bytes, and gets its name when it is complete.

    Args:
        first: number of the first shard.
        finished: called with each shard's path once it is complete, before the next record is asked for.

    Raises:
        ValueError: a key or an extension that cannot be read back, a key twice; no record although `first` is 0.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    waiting = iter(_unique(records))
    record = next(waiting, None)
    while record is not None:
        with ShardWriter(out / f"{name}-{first + len(paths):06d}.tar") as shard:
            shard.add(record)
            while shard.records < per_shard and shard.size < bytes_per_shard and (record := next(waiting, None)):
                shard.add(record)
            shard.complete()
            shard.publish()
        paths.append(shard.path)
        if finished is not None:
            finished(shard.path)
        record = next(waiting, None)
    if not paths and not first:
        raise ValueError(f"nothing to write to {out}: there are no records")
    return paths


def _unique(records: Iterable[Record]) -> Iterator[Record]:
    seen: set[str] = set()
    for record in records:
        if record.key in seen:
            raise ValueError(f"record key {record.key!r} occurs twice")
        seen.add(record.key)
        yield record


def _members(record: Record) -> dict[str, bytes | Content]:
    if record_key(f"{record.key}.json") != record.key or ".." in record.key or record.key.startswith("/"):
        raise ValueError(f"record key {record.key!r}: must have no dots and no leading slash")
    unknown = {name for name in record.media if numbered(name) is None} - VIDEO - AUDIO - IMAGE
    if unknown:
        raise ValueError(f"record {record.key!r}: cannot store media of type {', '.join(sorted(unknown))}")
    return {**record.media, "json": json_text(record.content, has_media=bool(record.media))}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
