"""The sidecar index of a shard: everything that planning needs, made once, memory-mapped ever after.

`<shard>.index/` holds `clips.npy`, `items.npy`, `keys.npy`, `parts.npy` (all readable without pickle),
`quarantine.jsonl` and `meta.json`, which is written last and seals the others. What cannot be used is a row of the
quarantine list: clips + items of good records and quarantined rows together account for everything found in the tar.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from arcvideo.decoding.pool import MediaPool
from arcvideo.files import FULL, read_lines
from arcvideo.progress import counted
from arcvideo.remote.links import read_link
from arcvideo.remote.origin import Changed
from arcvideo.shards.beside import take_over
from arcvideo.shards.columns import CLIP, DIGEST, DIGESTS, FORMAT, ITEM, PART, TEXTS, Columns, check_meta, files_of
from arcvideo.shards.locks import in_turns, locked
from arcvideo.shards.members import Problem, read_at, read_groups
from arcvideo.shards.record import parse_record, probe_jobs
from arcvideo.shards.rows import mapped_npy
from arcvideo.shards.seal import check, difference, digests, sealed, unsealed
from arcvideo.shards.streamed import streamed_columns
from arcvideo.tasks import RecordError

_DTYPES: dict[str, np.dtype[Any]] = {"clips": CLIP, "items": ITEM, "keys": np.dtype(np.uint8), "parts": PART,
                                        "digests": DIGEST}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """An index; its columns are mapped into memory when they are looked at, those of a few shards at a time.

    Every mapped file costs a file descriptor, and data sets have thousands of shards.
    """

    shard: Path
    meta: Mapping[str, Any]
    place: str = ""
    """`data.index_dir`: the folder of all indexes; empty for beside the shard."""

    @property
    def folder(self) -> Path:
        return index_folder(self.shard, place=self.place)

    @property
    def clips(self) -> np.ndarray:
        """(clips,) of dtype CLIP.

        Raises:
            OSError: the index was made again since it was opened.
        """
        return _column(self.folder, "clips", self.digest)

    @property
    def items(self) -> np.ndarray:
        """(items,) of dtype ITEM."""
        return _column(self.folder, "items", self.digest)

    @property
    def keys(self) -> np.ndarray:
        """(bytes,) uint8, all keys one after the other."""
        return _column(self.folder, "keys", self.digest)

    @property
    def parts(self) -> np.ndarray:
        """(parts,) of dtype PART: the media of records that have several."""
        return _column(self.folder, "parts", self.digest)

    @property
    def tasks(self) -> list[str]:
        return list(self.meta["tasks"])

    @property
    def tagsets(self) -> list[list[str]]:
        return list(self.meta["tagsets"])

    @property
    def digest(self) -> str:
        """Hex digest of the content: keys, media, items; not of the file's name or time."""
        return str(self.meta["digest"])

    def key(self, row: int) -> str:
        clip = self.clips[row]
        return self.keys[clip["key_start"] : clip["key_start"] + clip["key_size"]].tobytes().decode()

    def record(self, row: int) -> dict[str, Any]:
        """Return the record's JSON, read from the shard.

        Raises:
            RecordError: `corrupt`: its bytes are not those that were indexed.
            OSError: the shard cannot be read.
        """
        return parse_record(self.text(row))

    def text(self, row: int) -> bytes:
        """Return the record's JSON as it stands in the shard; raises what `record` does."""
        text = self._text(row)
        if DIGESTS in self.meta["files"]:
            digest = _column(self.folder, "digests", self.digest)[row]["sha256"]
            if hashlib.sha256(text).digest() != digest.tobytes():
                detail = f"{self.key(row)} in {self.shard.name}: its record is not the one that was indexed"
                raise RecordError("corrupt", f"{detail}; restore the shard, `arcvideo verify {self.shard}` checks it")
        return text

    def _text(self, row: int) -> bytes:
        clip = self.clips[row]
        offset, size = int(clip["json_offset"]), int(clip["json_size"])
        if TEXTS not in self.meta["files"]:
            return read_at(self.shard, offset=offset, size=size)
        start = int(_text_starts(self.folder, self.digest)[row])
        with open(self.folder / TEXTS, "rb") as file:
            file.seek(start)
            return file.read(size)

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Return offset and size of what `media_bytes` reads of a record."""
        ends = [(int(medium[f"{what}_offset"]), int(medium[f"{what}_size"])) for medium in self.media(row)
                for what in ("media", "sound")]  # fmt: skip
        return [(offset, size) for offset, size in ends if size]

    def media(self, row: int) -> list[np.void]:
        """Return the facts of each medium of a record, in order, as rows of PART or CLIP; none for text only."""
        if self.meta["parts"]:
            parts = self.parts
            first, last = np.searchsorted(parts["clip"], [row, row + 1])
            if last > first:
                return list(parts[first:last])
        clip = self.clips[row]
        return [clip] if clip["media_size"] else []

    def media_count(self, row: int) -> int:
        """Return how many media a record has."""
        return len(self.media(row))

    def media_bytes(self, row: int, *, part: int = 0) -> tuple[bytes, bytes | None]:
        """Return the media file and the separate sound file, if there is one, of a record's medium; empty for text
        only.
        """
        media = self.media(row)
        if not media:
            return b"", None
        medium = media[part]
        data = read_at(self.shard, offset=int(medium["media_offset"]), size=int(medium["media_size"]))
        if not medium["sound_size"]:
            return data, None
        return data, read_at(self.shard, offset=int(medium["sound_offset"]), size=int(medium["sound_size"]))

    def problems(self) -> list[Problem]:
        rows = read_lines(self.folder / "quarantine.jsonl")
        return [Problem(**{**row, "shard": self.shard.name}) for row in rows]


def index_place(place: str) -> str:
    """Return `data.index_dir`, where it is empty what ARCVIDEO_INDEX_DIR says, which every command reads."""
    return place or os.environ.get("ARCVIDEO_INDEX_DIR", "")


def index_folder(shard: Path, *, place: str = "") -> Path:
    """Return the folder of a shard's index.

    Args:
        place: `data.index_dir`. Shards of one name from several folders have indexes of different names there.
    """
    place = index_place(place)
    if not place:
        return shard.with_name(shard.name + ".index")
    digest = hashlib.sha256(os.path.abspath(shard).encode()).hexdigest()
    return Path(place) / f"{shard.name}.{digest[:12]}.index"


@lru_cache(maxsize=3 * 64)
def _column(folder: Path, name: str, digest: str) -> np.ndarray:
    column = mapped_npy(folder / f"{name}.npy", _DTYPES[name])
    facts = (folder / "meta.json").stat()
    if _digest(folder, facts.st_ino, facts.st_mtime_ns) != digest:
        raise OSError(f"{folder}: the index was made again while it was in use; start again")
    return column


@lru_cache(maxsize=64)
def _text_starts(folder: Path, digest: str) -> np.ndarray:
    """Return (clips,) int64: where each record's JSON begins in its file."""
    sizes = _column(folder, "clips", digest)["json_size"]
    return np.cumsum(sizes) - sizes


@lru_cache(maxsize=1 << 14)
def _digest(folder: Path, *_: int) -> str:
    """Return what the meta.json that has this inode and time says; read once."""
    path = folder / "meta.json"
    return str(unsealed(path.read_text(encoding="utf-8"), name=path)["digest"])


def open_index(shard: Path, *, place: str = "") -> ShardIndex | None:
    """Return the index of a shard, None when there is none, the shard has changed since, or the index is damaged.

    Every file is compared with its digest, whole once per machine and by size and time afterwards.

    Raises:
        Changed: a remote shard is another one now, as some process found.
    """
    folder = index_folder(shard, place=place)
    try:
        text = (folder / "meta.json").read_text(encoding="utf-8")
        stored = json.loads(text)
        if not isinstance(stored, dict) or stored.get("made_from") != _made_from(shard):
            return None
        meta = unsealed(text, name=folder / "meta.json")
        check_meta(meta)
        check(folder, meta["files"])
    except FileNotFoundError:
        return None
    except Changed:  # what a link stood for: there is nothing to index until it is fetched anew
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _column.cache_clear()  # it may hold maps of the damaged files
        _tell(f"{folder}: damaged, made again: {error}")
        return None
    return ShardIndex(shard=shard, meta=meta, place=place)


@lru_cache(maxsize=1000)
def _tell(line: str) -> None:
    """Print a line once, however often an index is asked for before it is made again."""
    print(line, file=sys.stderr)


def seal_index(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write `meta.json` of an index whose other files are complete, with their digests."""
    (folder / "meta.json").write_text(sealed({**meta, "files": digests(folder, files_of(folder))}), encoding="utf-8")


def ensure_indexes(
    shards: Sequence[Path], *, workers: int = 0, progress: bool = True, place: str = ""
) -> list[ShardIndex]:
    """Return the indexes of all shards; missing and stale ones are built, shared with other processes that ask for them
    too.

    Args:
        workers: processes that examine media, where a file that hangs or crashes a decoder costs one record;
            0 examines them in this process.
        place: `data.index_dir`, made if it is not there; empty keeps each index beside its shard.

    Raises:
        ValueError: a shard changed meanwhile, or its index cannot be written.
    """
    by_shard = {shard: open_index(shard, place=place) for shard in shards}
    stale = [shard for shard, index in by_shard.items() if index is None]
    bar = counted(what="index", total=len(stale), unit="shard", quiet=not progress or not stale)
    with bar as advance, MediaPool(count=workers) as pool:
        in_turns(
            stale,
            done=lambda shard: open_index(shard, place=place) is not None,
            work=lambda shard: _build(shard, pool=pool, progress=progress, place=place),
            advance=advance,
            lock=lambda shard: lock_file(shard, place=place),
        )
    indexes = []
    for shard in shards:
        opened = by_shard[shard] or open_index(shard, place=place)
        if opened is None:
            raise ValueError(f"{shard}: changed while it was indexed; run again when its writer has finished")
        indexes.append(opened)
    return indexes


class OpenedLater(Sequence[ShardIndex]):
    """Indexes of many shards, each opened when it is needed; as many as fit are kept."""

    def __init__(self, shards: Sequence[Path], digests: Sequence[str], *, place: str = "") -> None:
        """Open nothing yet.

        Args:
            shards: whose indexes are there.
            digests: of their content, as they were when somebody looked.
            place: `data.index_dir`; empty for indexes beside their shards.
        """
        self.digests = tuple(digests)
        self._shards, self._place = tuple(shards), place

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, number: int) -> ShardIndex: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[ShardIndex]: ...
    def __getitem__(self, number: int | slice) -> ShardIndex | Sequence[ShardIndex]:
        """Return the index of a shard.

        Raises:
            ValueError: it is not what it was.
        """
        if isinstance(number, slice):
            return [self[place] for place in range(len(self))[number]]
        return _opened(self._shards[number], self.digests[number], self._place)


@lru_cache(maxsize=1024)
def _opened(shard: Path, digest: str, place: str) -> ShardIndex:
    index = open_index(shard, place=place)
    if index is None or index.digest != digest:
        raise ValueError(f"{shard}: it or its index changed while a run used it; start again")
    return index


def content_digest(sources: Iterable[tuple[str, Sequence[ShardIndex]]]) -> str:
    """Return the hex digest of the content of all shards, from (name, indexes) of each source."""
    digest = hashlib.sha256()
    for name, indexes in sources:
        digest.update(name.encode())
        for content in indexes.digests if isinstance(indexes, OpenedLater) else (index.digest for index in indexes):
            digest.update(bytes.fromhex(content))
    return digest.hexdigest()


def build_index(shard: Path, *, pool: MediaPool | None = None) -> None:
    """Write `<shard>.index/`, whole or not at all; several processes may ask for the same one."""
    with locked(lock_file(shard)):
        if open_index(shard) is None:  # no other process was faster
            _build(shard, pool=pool or MediaPool(count=0))


def lock_file(shard: Path, *, place: str = "") -> Path:
    """Return the file that is locked while a shard's index or token counts are written."""
    return index_folder(shard, place=place).with_suffix(".lock")


def _build(shard: Path, *, pool: MediaPool, progress: bool = False, place: str = "") -> None:
    made_from, link = _made_from(shard), read_link(shard)
    if link is not None:
        _publish(
            lambda folder: (
                take_over(shard, link, folder=folder)
                or streamed_columns(shard, link, pool=pool, progress=progress).write(folder)
            ),
            made_from, shard=shard, place=place,
        )  # fmt: skip
        return
    groups, problems = read_groups(shard)
    if all(problem.stage != "shard" for problem in problems) and (what := difference(shard)):
        problems.append(Problem(key=shard.name, stage="shard", reason="changed", detail=what))
    columns = Columns(problems=problems)
    jobs = [probe_jobs(group, shard=shard) for group in groups]
    probed = pool.examined(chain.from_iterable(jobs))
    with counted(what=shard.name, total=len(groups), unit="clip", quiet=not progress) as advance:
        for group, own in zip(groups, jobs, strict=True):
            columns.add(
                group,
                read=lambda member: read_at(shard, offset=member.offset, size=member.size),
                probed=list(islice(probed, len(own))),
            )
            advance(1)
    _publish(columns.write, made_from, shard=shard, place=place)


def _publish(
    write: Callable[[Path], Mapping[str, Any]], made_from: Mapping[str, Any], *, shard: Path, place: str
) -> None:
    folder = index_folder(shard, place=place)
    scratch = folder.with_name(f".{folder.name}.partial")  # the lock leaves one writer
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
    try:
        scratch.mkdir()
        seal_index(scratch, {"made_from": made_from, **write(scratch)})
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        remedy = "make room and start again" if error.errno in FULL else "give another folder, data.index_dir=DIR"
        raise ValueError(f"{folder}: cannot be written ({error.strerror or error}); {remedy}") from error


def _made_from(shard: Path) -> dict[str, Any]:
    link = read_link(shard)
    if link is not None:
        return {"format": FORMAT, **asdict(link.identity)}
    stat = shard.stat()
    return {"format": FORMAT, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
