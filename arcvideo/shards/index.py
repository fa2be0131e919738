"""The sidecar index of a shard: everything that planning needs, made once, memory-mapped ever after.

`<shard>.index/` holds `clips.npy`, `items.npy`, `keys.npy` (all readable without pickle), `quarantine.jsonl` and
`meta.json`, which is written last. What cannot be used is a row of the quarantine list: clips + items of good records
and quarantined rows together account for everything found in the tar.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from arcvideo.media.errors import MediaError
from arcvideo.shards.locks import in_turns, locked
from arcvideo.shards.members import AUDIO, IMAGE, VIDEO, Group, Member, Problem, read_at, read_groups
from arcvideo.shards.probe import NO_MEDIA, Extent, MediaFacts, Probed, ProbeJob, ProbePool
from arcvideo.tasks import RecordError, make_sample
from arcvideo.tasks.fields import check_times

FORMAT = 3
"""Raised whenever the meaning of a stored column changes, so that old indexes are built again."""

CLIP = np.dtype(
    [
        ("key_start", "<i8"), ("key_size", "<i4"), ("json_offset", "<i8"), ("json_size", "<i8"),
        ("media_offset", "<i8"), ("media_size", "<i8"), ("sound_offset", "<i8"), ("sound_size", "<i8"),
        ("digest", "u1", (32,)), ("duration", "<f8"), ("has_video", "?"), ("sound_samples", "<i8"),
        ("item_start", "<i8"), ("item_count", "<i4"),
    ]
)  # fmt: skip
"""One row per usable record. Sizes 0 mean absent; `sound_*` is a separate sound file that is used with the media;
`sound_samples` counts the samples at 16 kHz that decoding gives, 0 without sound."""

ITEM = np.dtype([("clip", "<i8"), ("number", "<i4"), ("task", "<i2"), ("tagset", "<i4"), ("think", "?")])
"""One row per usable item; `number` is its place in the record, `task` and `tagset` point into meta.json."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """An index; its columns are mapped into memory when they are looked at, those of a few shards at a time.

    Every mapped file costs a file descriptor, and data sets have thousands of shards.
    """

    shard: Path
    meta: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return index_folder(self.shard)

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
        """The record's JSON, read from the shard."""
        clip = self.clips[row]
        return parse_record(read_at(self.shard, offset=int(clip["json_offset"]), size=int(clip["json_size"])))

    def media_bytes(self, row: int) -> tuple[bytes, bytes | None]:
        """The media file and the separate sound file, if there is one."""
        clip = self.clips[row]
        data = read_at(self.shard, offset=int(clip["media_offset"]), size=int(clip["media_size"]))
        if not clip["sound_size"]:
            return data, None
        return data, read_at(self.shard, offset=int(clip["sound_offset"]), size=int(clip["sound_size"]))

    def problems(self) -> list[Problem]:
        lines = (self.folder / "quarantine.jsonl").read_text().splitlines()
        return [Problem(**{**json.loads(line), "shard": self.shard.name}) for line in lines]


def index_folder(shard: Path) -> Path:
    return shard.with_name(shard.name + ".index")


@lru_cache(maxsize=3 * 16)
def _column(folder: Path, name: str, digest: str) -> np.ndarray:
    column = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    if json.loads((folder / "meta.json").read_text())["digest"] != digest:
        raise OSError(f"{folder}: the index was made again while it was in use; start again")
    return column


def open_index(shard: Path) -> ShardIndex | None:
    """The index of a shard, None when there is none or the shard has changed since."""
    folder = index_folder(shard)
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta.get("made_from") != _made_from(shard):
            return None
        for name in ("clips", "items", "keys"):
            _column(folder, name, meta["digest"])
    except (FileNotFoundError, ValueError):
        return None
    return ShardIndex(shard=shard, meta=meta)


def ensure_indexes(shards: Sequence[Path], *, workers: int = 0, progress: bool = True) -> list[ShardIndex]:
    """The indexes of all shards; missing and stale ones are built, shared with other processes that ask for them too.

    Args:
        workers: processes that examine media, where a file that hangs or crashes a decoder costs one record;
            0 examines them in this process.
    """
    stale = [shard for shard in shards if open_index(shard) is None]
    bar = tqdm(total=len(stale), desc="index", unit="shard", disable=not progress or not stale, leave=False)
    with bar, ProbePool(count=workers) as pool:
        in_turns(
            stale,
            done=lambda shard: open_index(shard) is not None,
            work=lambda shard: _build(shard, pool=pool, progress=progress),
            advance=bar.update,
        )
    indexes = [open_index(shard) for shard in shards]
    for shard, index in zip(shards, indexes, strict=True):
        if index is None:
            raise ValueError(f"{shard}: changed while it was indexed; run again when its writer has finished")
    return [index for index in indexes if index is not None]


def build_index(shard: Path, *, pool: ProbePool | None = None) -> None:
    """Writes `<shard>.index/`, whole or not at all; several processes may ask for the same one."""
    with locked(shard):
        if open_index(shard) is None:  # no other process was faster
            _build(shard, pool=pool or ProbePool())


def _build(shard: Path, *, pool: ProbePool, progress: bool = False) -> None:
    made_from = _made_from(shard)
    groups, problems = read_groups(shard)
    table = _Table(problems=problems)
    probed = pool.map(_probe_job(group, shard=shard) for group in groups)
    clips = tqdm(probed, desc=shard.name, unit="clip", total=len(groups), disable=not progress, leave=False)
    for group, found in zip(groups, clips, strict=True):
        table.add(group, shard=shard, found=found)
    folder = index_folder(shard)
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    table.write(scratch, made_from=made_from)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _made_from(shard: Path) -> dict[str, int]:
    stat = shard.stat()
    return {"format": FORMAT, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


@dataclass
class _Table:
    """The rows of an index while it is built."""

    problems: list[Problem]
    clips: list[tuple[Any, ...]] = field(default_factory=list)
    items: list[tuple[Any, ...]] = field(default_factory=list)
    keys: bytearray = field(default_factory=bytearray)
    tasks: dict[str, int] = field(default_factory=dict)
    tagsets: dict[tuple[str, ...], int] = field(default_factory=dict)
    content: Any = field(default_factory=hashlib.sha256)

    def add(self, group: Group, *, shard: Path, found: Probed | MediaError | None) -> None:
        """One record: a clip with its items, or rows of the quarantine list.

        Args:
            found: what probing its media gave; None when there was nothing that could be probed.
        """
        try:
            source = _json_member(group)
            text = read_at(shard, offset=source.offset, size=source.size)
            record = parse_record(text)
            media = _media(group, record=record, found=found)
            items = record.get("items")
            if not isinstance(items, list) or not items:
                raise RecordError("no_items", "'items' must be a non-empty list")
        except (RecordError, MediaError) as error:
            stage = "media" if isinstance(error, MediaError) else "record"
            self.problems.append(Problem(key=group.key, stage=stage, reason=error.reason, detail=error.detail))
            return
        good = [
            row
            for number, item in enumerate(items)
            if (row := self._item(item, key=group.key, number=number, media=media))
        ]
        if not good:
            return
        start, key = len(self.keys), group.key.encode()
        self.keys += key
        self.clips.append((start, len(key), source.offset, source.size, *media.columns(), len(self.items), len(good)))
        self.items += good
        self.content.update(hashlib.sha256(text).digest())

    def _item(self, item: Any, *, key: str, number: int, media: _Media) -> tuple[Any, ...] | None:
        key = f"{key}/{number}"
        try:
            make_sample(item, key=key, media_key=key, style="plain")
            make_sample(item, key=key, media_key=key, style="think")
            check_times(item, seconds=media.facts.duration)
            tags = item.get("tags") or []
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise RecordError("bad_tags", "'tags' must be a list of strings")
        except RecordError as error:
            self.problems.append(Problem(key=key, stage="item", reason=error.reason, detail=error.detail))
            return None
        task = self.tasks.setdefault(item["task"], len(self.tasks))
        tagset = self.tagsets.setdefault(tuple(sorted(set(tags))), len(self.tagsets))
        return (len(self.clips), number, task, tagset, bool(item.get("think")))

    def write(self, folder: Path, *, made_from: Mapping[str, int]) -> None:
        clips, items = np.array(self.clips, dtype=CLIP), np.array(self.items, dtype=ITEM)
        keys = np.frombuffer(bytes(self.keys), dtype=np.uint8)
        tagsets = [list(tags) for tags in self.tagsets]
        digest = self.content
        digest.update(json.dumps([FORMAT, list(self.tasks), tagsets]).encode())
        for array in (clips, items, keys):
            digest.update(array.tobytes())
        np.save(folder / "clips.npy", clips, allow_pickle=False)
        np.save(folder / "items.npy", items, allow_pickle=False)
        np.save(folder / "keys.npy", keys, allow_pickle=False)
        rows = [json.dumps(asdict(problem), ensure_ascii=False) for problem in self.problems]
        (folder / "quarantine.jsonl").write_text("".join(row + "\n" for row in rows))
        meta = {"made_from": made_from, "digest": digest.hexdigest(), "tasks": list(self.tasks), "tagsets": tagsets}
        counts = {"clips": len(clips), "items": len(items), "quarantined": len(rows)}
        (folder / "meta.json").write_text(json.dumps({**meta, **counts}))


@dataclass(frozen=True, kw_only=True)
class _Media:
    """Where a record's media lie and what they are."""

    main: Member | None = None
    sound: Member | None = None
    digest: bytes = bytes(32)
    facts: MediaFacts = NO_MEDIA

    def columns(self) -> tuple[Any, ...]:
        main, sound = self.main, self.sound
        return (
            *((main.offset, main.size) if main else (0, 0)),
            *((sound.offset, sound.size) if sound else (0, 0)),
            np.frombuffer(self.digest, dtype=np.uint8),
            self.facts.duration,
            self.facts.has_video,
            self.facts.sound_samples,
        )


def _json_member(group: Group) -> Member:
    found = [member for member in group.members if member.extension == "json"]
    if len(found) != 1:
        raise RecordError("no_json" if not found else "several_json", f"{len(found)} .json members")
    return found[0]


def parse_record(data: bytes) -> dict[str, Any]:
    """The JSON object of a record.

    Raises:
        RecordError: `broken_json`.
    """
    try:
        record = json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise RecordError("broken_json", str(error)) from error
    if not isinstance(record, dict):
        raise RecordError("broken_json", f"the record must be an object, got {type(record).__name__}")
    return record


def _media_members(group: Group) -> tuple[list[Member], list[Member]]:
    """Pictures (videos or stills) and sounds."""
    pictures = [member for member in group.members if member.extension in VIDEO | IMAGE]
    sounds = [member for member in group.members if member.extension in AUDIO]
    return pictures, sounds


def _probe_job(group: Group, *, shard: Path) -> ProbeJob | None:
    """What to probe: one picture and at most one sound, or one sound; None when the members are otherwise."""
    pictures, sounds = _media_members(group)
    if len(pictures) > 1 or len(sounds) > 1 or not (pictures or sounds):
        return None
    main, *rest = [
        Extent(path=shard, name=member.name, offset=member.offset, size=member.size) for member in (*pictures, *sounds)
    ]
    return ProbeJob(main=main, sound=rest[0] if rest else None)


def _media(group: Group, *, record: Mapping[str, Any], found: Probed | MediaError | None) -> _Media:
    """Where the record's media lie and what probing found."""
    pictures, sounds = _media_members(group)
    if not pictures and not sounds:
        if record.get("text_only") is True:
            return _Media()
        other = ", ".join(member.name for member in group.members if member.extension != "json")
        raise RecordError(
            "no_media",
            f"{other} is of no known type" if other else 'no media file; say "text_only": true when that is meant',
        )
    if len(pictures) > 1 or len(sounds) > 1:
        names = ", ".join(member.name for member in (*pictures, *sounds))
        raise RecordError("several_media", f"more than one picture or sound: {names}")
    assert found is not None
    if isinstance(found, MediaError):
        raise found
    sound = sounds[0] if found.uses_sound else None
    return _Media(main=(pictures or sounds)[0], sound=sound, digest=found.digest, facts=found.facts)
