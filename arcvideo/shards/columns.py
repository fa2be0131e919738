"""The columns of an index, and how records become rows of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.decoding.probe import Probed
from arcvideo.files import write_lines
from arcvideo.media.errors import MediaError
from arcvideo.media.frames import behind_picture
from arcvideo.media.sound import SAMPLE_RATE
from arcvideo.shards.items import checked_sample
from arcvideo.shards.members import Member, Problem, RecordMembers, as_utf8
from arcvideo.shards.record import RecordMedia, json_member, parse_record, record_media
from arcvideo.tasks import RecordError
from arcvideo.tasks.fields import check_times

FORMAT = 5
"""Raised whenever the meaning of a stored column changes, so that old indexes are built again."""

CONTENT = 3
"""Raised whenever equal shards would mean other samples: the data of a stage are named by it."""

FILES = ("clips.npy", "items.npy", "keys.npy", "parts.npy", "quarantine.jsonl")
"""Of every index, besides meta.json."""
TEXTS = "records.bin"
"""File of an index with the records' JSON, one after the other: of remote shards, where each would be a request."""

DIGESTS = "digests.npy"
"""File of an index with a row of DIGEST per usable record; indexes that an older version made have none."""
DIGEST = np.dtype([("sha256", "u1", (32,))])
"""Of the record's JSON, so that a flipped letter is never taken for an answer. It is no part of the index's content."""

OPTIONAL = frozenset({TEXTS, DIGESTS})

_MEDIUM = [
    ("media_offset", "<i8"), ("media_size", "<i8"), ("sound_offset", "<i8"), ("sound_size", "<i8"),
    ("digest", "u1", (32,)), ("duration", "<f8"), ("has_video", "?"), ("sound_samples", "<i8"),
]  # fmt: skip
CLIP = np.dtype(
    [
        ("key_start", "<i8"), ("key_size", "<i4"), ("json_offset", "<i8"), ("json_size", "<i8"), *_MEDIUM,
        ("item_start", "<i8"), ("item_count", "<i4"),
    ]
)  # fmt: skip
"""One row per usable record. Sizes 0 mean absent; `sound_*` is a separate sound file that is used with the media;
`sound_samples` counts the samples at 16 kHz that decoding gives, 0 without sound. Of a record with several media,
offsets and sizes are those of the first, the rest is of all together."""

PART = np.dtype([("clip", "<i8"), *_MEDIUM])
"""One row for each medium of a record that has several, in their order; `clip` is the record's row."""

ITEM = np.dtype([("clip", "<i8"), ("number", "<i4"), ("task", "<i2"), ("tagset", "<i4"), ("think", "?")])
"""One row per usable item; `number` is its place in the record, `task` and `tagset` point into meta.json."""


@dataclass
class Columns:
    """The rows of an index while it is built."""

    problems: list[Problem]
    clips: list[tuple[Any, ...]] = field(default_factory=list)
    items: list[tuple[Any, ...]] = field(default_factory=list)
    parts: list[tuple[Any, ...]] = field(default_factory=list)
    keys: bytearray = field(default_factory=bytearray)
    tasks: dict[str, int] = field(default_factory=dict)
    tagsets: dict[tuple[str, ...], int] = field(default_factory=dict)
    texts: bytearray | None = None
    """The JSON of all clips, one after the other, where it is to be kept."""
    content: Any = field(default_factory=hashlib.sha256)
    digests: bytearray = field(default_factory=bytearray)
    """The sha256 of each clip's JSON, one after the other."""

    def add(
        self, group: RecordMembers, *, read: Callable[[Member], bytes], probed: Sequence[Probed | MediaError | None]
    ) -> None:
        """One record: a clip with its items, or rows of the quarantine list.

        Args:
            read: gives the bytes of the record's JSON.
            probed: what probing each of its media gave; None where there was nothing that could be probed.
        """
        try:
            source = json_member(group)
            text = read(source)
            record = parse_record(text)
            media = record_media(group, record=record, probed=probed)
            items = record.get("items")
            if not isinstance(items, list) or not items:
                raise RecordError("no_items", "'items' must be a non-empty list")
        except (RecordError, MediaError) as error:
            stage = "media" if isinstance(error, MediaError) else "record"
            self.problems.append(Problem(key=group.key, stage=stage, reason=error.reason, detail=as_utf8(error.detail)))
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
        self.parts += [(len(self.clips), *part.columns()) for part in media.parts]
        self.clips.append((start, len(key), source.offset, source.size, *media.columns(), len(self.items), len(good)))
        self.items += good
        digest = hashlib.sha256(text).digest()
        self.content.update(digest)
        self.digests += digest
        if self.texts is not None:
            self.texts += text

    def _item(self, item: Any, *, key: str, number: int, media: RecordMedia) -> tuple[Any, ...] | None:
        key = f"{key}/{number}"
        try:
            checked_sample(item, key=key, has_media=True, media_count=len(media.parts) or 1)
            check_times(item, seconds=media.longest)
        except RecordError as error:
            self.problems.append(Problem(key=key, stage="item", reason=error.reason, detail=as_utf8(error.detail)))
            return None
        tags = item.get("tags") or []
        task = self.tasks.setdefault(item["task"], len(self.tasks))
        tagset = self.tagsets.setdefault(tuple(sorted(set(tags))), len(self.tagsets))
        return (len(self.clips), number, task, tagset, bool(item.get("think")))

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the arrays and the quarantine list; returns what else there is to know of them."""
        clips, items = np.array(self.clips, dtype=CLIP), np.array(self.items, dtype=ITEM)
        keys, parts = np.frombuffer(bytes(self.keys), dtype=np.uint8), np.array(self.parts, dtype=PART)
        tagsets = [list(tags) for tags in self.tagsets]
        digest = ended(self.content, tasks=list(self.tasks), tagsets=tagsets, arrays=(clips, items, keys, parts))
        np.save(folder / "clips.npy", clips, allow_pickle=False)
        np.save(folder / "items.npy", items, allow_pickle=False)
        np.save(folder / "keys.npy", keys, allow_pickle=False)
        np.save(folder / "parts.npy", parts, allow_pickle=False)
        np.save(folder / DIGESTS, np.frombuffer(bytes(self.digests), dtype=DIGEST), allow_pickle=False)
        if self.texts is not None:
            (folder / TEXTS).write_bytes(self.texts)
        write_lines(folder / "quarantine.jsonl", map(asdict, self.problems))
        meta = {"digest": digest, "tasks": list(self.tasks), "tagsets": tagsets}
        unheard = [
            behind_picture(sound=row["sound_samples"] / SAMPLE_RATE, picture=row["duration"])
            for row in (*clips[clips["has_video"] & ~np.isin(np.arange(len(clips)), parts["clip"])],
                        *parts[parts["has_video"]])
        ]  # fmt: skip
        counts = {"clips": len(clips), "items": len(items), "parts": len(parts), "quarantined": len(self.problems)}
        totals = {"unheard_clips": sum(1 for seconds in unheard if seconds), "unheard_seconds": float(sum(unheard))}
        return {**meta, **counts, **totals}


def files_of(folder: Path) -> list[str]:
    """Return the names of the files of an index that was written, besides meta.json."""
    return [*FILES, *sorted(name for name in OPTIONAL if (folder / name).exists())]


def ended(content: Any, *, tasks: list[str], tagsets: list[list[str]], arrays: Sequence[np.ndarray]) -> str:
    """Return the hex digest of an index's content.

    Args:
        content: hash that was given the sha256 of each clip's JSON.
        tasks: names, as in meta.json.
        tagsets: as in meta.json.
        arrays: clips, items, keys, parts.
    """
    content.update(json.dumps([CONTENT, tasks, tagsets]).encode())
    for array in arrays:  # no bytes without parts
        content.update(array.tobytes())
    return str(content.hexdigest())


def check_meta(meta: Mapping[str, Any]) -> None:
    """Raise ValueError for a meta.json that we would not have written, by whomever it was sealed."""
    tasks, tagsets = meta.get("tasks"), meta.get("tagsets")
    texts = isinstance(tasks, list) and isinstance(tagsets, list)
    texts = texts and all(
        isinstance(text, str) for listed in (tasks, *tagsets) if isinstance(listed, list) for text in listed
    )
    counts = all(type(meta.get(name)) is int for name in ("clips", "items", "parts", "quarantined", "unheard_clips"))
    if not texts or not all(isinstance(listed, list) for listed in tagsets or ()) or not counts:
        raise ValueError("meta.json is not of an index")
    files = meta.get("files")
    if not isinstance(meta.get("digest"), str) or not isinstance(files, dict) or set(files) - OPTIONAL != set(FILES):
        raise ValueError("meta.json is not of an index")
