"""Writing shards, with webdataset's writer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.seals import publish
from arcvideo.shards.members import AUDIO, IMAGE, VIDEO, numbered, record_key

os.environ.setdefault("WDS_SECURE", "1")  # plain webdataset would run `pipe:` URLs and unpickle members


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record to be written."""

    key: str
    """Unique in the data set, without dots."""
    content: Mapping[str, Any]
    """The JSON object: `items` and what else is worth keeping."""
    media: Mapping[str, bytes]
    """Extension -> bytes: at most one picture and one sound; several media are numbered by their place, `0.mp4`,
    `1.jpg`; empty for text only."""


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
    import webdataset

    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    waiting = iter(_unique(records))
    record = next(waiting, None)
    while record is not None:
        path = out / f"{name}-{first + len(paths):06d}.tar"
        scratch = path.with_name(f".{path.name}.partial")
        with open(scratch, "wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
            tar.write(_members(record))
            written = 1
            while written < per_shard and file.tell() < bytes_per_shard and (record := next(waiting, None)):
                tar.write(_members(record))
                written += 1
        publish(scratch, path)
        paths.append(path)
        if finished is not None:
            finished(path)
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


def _members(record: Record) -> dict[str, Any]:
    if record_key(f"{record.key}.json") != record.key or ".." in record.key or record.key.startswith("/"):
        raise ValueError(f"record key {record.key!r}: must have no dots and no leading slash")
    unknown = {name for name in record.media if numbered(name) is None} - VIDEO - AUDIO - IMAGE
    if unknown:
        raise ValueError(f"record {record.key!r}: cannot store media of type {', '.join(sorted(unknown))}")
    content = dict(record.content) if record.media else {**record.content, "text_only": True}
    text = json.dumps(content, ensure_ascii=False, default=_plain).encode()
    return {"__key__": record.key, **record.media, "json": text}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
