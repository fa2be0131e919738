"""The index that lies beside a remote shard, `NAME.index/` on its server: taken over where it is that of the shard.

Whoever indexes shards before uploading them, index folders included, spares everybody else a pass over each. An index
is believed when its shard has the size, and the ETag where the index knows one, and when the records' JSON has the
digest in it; media are compared with theirs whenever they are read. Anything else there is passed over.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from arcvideo.hidden import hidden
from arcvideo.remote.links import Link
from arcvideo.remote.origin import Identity
from arcvideo.remote.reading import read_beside, read_once, settings_of
from arcvideo.seals import check
from arcvideo.shards.columns import CLIP, FORMAT, ITEM, PART, TEXTS, check_meta, ended
from arcvideo.shards.rows import mapped_npy
from arcvideo.shards.seal import unsealed

_META_BYTES = 1 << 26
_PIECE = 256
"""Records whose JSON is asked for before it is written."""


def take_over(shard: Path, link: Link, *, folder: Path) -> dict[str, Any] | None:
    """Fetch the index beside a remote shard; return what its meta.json says, None when there is none that fits.

    Args:
        shard: path of the link.
        link: to the shard as it is now.
        folder: empty; left empty when nothing is taken over.

    Raises:
        ValueError: the shard itself cannot be read, or changed meanwhile.
    """
    url = _beside(link.url, "meta.json")
    try:
        text = read_beside(shard, url, most=_META_BYTES)
    except ValueError:  # none is there, or none can be read
        return None
    try:
        meta = unsealed(text.decode(), name=Path("meta.json"))
        check_meta(meta)
        if difference := _difference(meta.get("made_from"), link.identity):
            raise ValueError(difference)
        _fetch(shard, link, meta=meta, folder=folder)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _empty(folder)
        print(f"{hidden(url)}: not used, the shard is indexed anew: {error}", file=sys.stderr)
        return None
    if TEXTS not in meta["files"]:
        _fetch_texts(shard, link, folder=folder)
    if _digest(folder, meta) != meta["digest"]:
        _empty(folder)
        print(f"{hidden(url)}: not used, the shard is indexed anew: it is of other records", file=sys.stderr)
        return None
    return {name: value for name, value in meta.items() if name not in ("files", "made_from")}


def _beside(url: str, name: str) -> str:
    """Return the URL of a file of the index; a signature behind `?` may hold for it too."""
    parts = urlparse(url)
    return parts._replace(path=f"{parts.path}.index/{name}").geturl()


def _difference(made_from: Any, now: Identity) -> str:
    """Return why an index is not of the remote file, as far as its facts tell; empty when they fit."""
    if not isinstance(made_from, Mapping) or made_from.get("format") != FORMAT:
        return "another version wrote it"
    if "etag" in made_from:
        then = Identity(size=made_from["size"], etag=made_from["etag"], modified=made_from["modified"])
        return then.difference(now)
    size = made_from.get("size")  # of a file that was indexed where it was written: its time there says nothing here
    return "" if size == now.size else f"size was {size}, is {now.size}"


def _fetch(shard: Path, link: Link, *, meta: Mapping[str, Any], folder: Path) -> None:
    """Write the files of an index.

    Raises:
        ValueError: one is missing, or not what it was, or has rows that no shard of this size has.
    """
    for name, fact in meta["files"].items():
        size = int(fact["size"])
        data = read_beside(shard, _beside(link.url, name), most=size) if size else b""
        (folder / name).write_bytes(data)
    check(folder, meta["files"])
    try:
        clips, items, _, parts = _arrays(folder)
    except OSError as error:
        raise ValueError(f"not of an index: {error}") from error
    if (len(clips), len(items), len(parts)) != (meta["clips"], meta["items"], meta["parts"]):
        raise ValueError("its files are not those of its meta.json")
    for rows, kinds in ((clips, ("json", "media", "sound")), (parts, ("media", "sound"))):
        for kind in kinds if len(rows) else ():
            starts, sizes = rows[f"{kind}_offset"], rows[f"{kind}_size"]
            if min(starts.min(), sizes.min()) < 0 or (starts + sizes).max() > link.identity.size:
                raise ValueError("it names bytes behind the end of the shard")


def _fetch_texts(shard: Path, link: Link, *, folder: Path) -> None:
    """Write the records' JSON, several asked for at once: an index that was made where the shard lay has none."""
    clips = _arrays(folder)[0]
    spans = list(zip(clips["json_offset"].tolist(), clips["json_size"].tolist(), strict=True))
    with (
        ThreadPoolExecutor(max(settings_of(shard).ahead, 1), "texts") as threads,
        open(folder / TEXTS, "wb") as file,
    ):
        for first in range(0, len(spans), _PIECE):
            part = spans[first : first + _PIECE]
            for text in threads.map(lambda span: read_once(shard, link, offset=span[0], size=span[1]), part):
                file.write(text)


def _digest(folder: Path, meta: Mapping[str, Any]) -> str:
    content = hashlib.sha256()
    arrays = _arrays(folder)
    for text in _texts(folder, arrays[0]["json_size"].tolist()):
        content.update(hashlib.sha256(text).digest())
    return ended(content, tasks=meta["tasks"], tagsets=meta["tagsets"], arrays=arrays)


def _texts(folder: Path, sizes: list[int]) -> Iterator[bytes]:
    with open(folder / TEXTS, "rb") as file:
        for size in sizes:
            yield file.read(size)


def _arrays(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return clips, items, keys and parts."""
    dtypes = {"clips": CLIP, "items": ITEM, "keys": np.dtype(np.uint8), "parts": PART}
    clips, items, keys, parts = (mapped_npy(folder / f"{name}.npy", dtype) for name, dtype in dtypes.items())
    return clips, items, keys, parts


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
