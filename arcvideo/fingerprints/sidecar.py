"""Fingerprints on disk: a sealed folder beside a shard, or inside a folder of media."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arcvideo.fingerprints.descriptors import BANDS, SIDE, Prints, prints_of
from arcvideo.media.errors import MediaError
from arcvideo.progress import watched
from arcvideo.shards.index import ShardIndex
from arcvideo.shards.locks import locked
from arcvideo.shards.members import VIDEO
from arcvideo.shards.seal import PRINTS, check, digests, sealed, unsealed

FORMAT = 2
IN_FOLDER = ".arcvideo-fingerprints"
_FILES = ("picture.npy", "sound.npy", "counts.npy")


@dataclass(frozen=True, kw_only=True)
class Printed:
    """Fingerprints of the clips of a shard or a folder."""

    name: str
    keys: tuple[str, ...]
    """What each clip is called: its record's key, with `.0`, `.1` ... where a record has several media."""
    prints: tuple[Prints, ...]
    unread: tuple[str, ...] = ()
    """`key: reason` of clips that could not be decoded; their fingerprints are empty."""


def print_shard(index: ShardIndex, *, workers: int = 1, again: bool = False) -> Printed:
    """Return the fingerprints of a shard's clips; missing and stale ones are made and kept beside it.

    Args:
        index: of the shard.
        workers: threads that decode.
        again: make them anew.
    """
    printed = None if again else read_shard(index)
    if printed is not None:
        return printed
    counts = [index.media_count(row) for row in range(len(index.clips))]
    places = [(row, part) for row, count in enumerate(counts) for part in range(max(1, count))]
    keys = [index.key(row) + (f".{part}" if counts[row] > 1 else "") for row, part in places]

    def load(clip: int) -> tuple[bytes, bytes | None]:
        row, part = places[clip]
        return index.media_bytes(row, part=part)

    return _make(
        shard_folder(index.shard), name=index.shard.name, digest=index.digest, keys=keys, load=load, workers=workers
    )


def read_shard(index: ShardIndex) -> Printed | None:
    """Return the fingerprints of a shard; None when there are none, or they are of other content or damaged."""
    return _read(shard_folder(index.shard), name=index.shard.name, digest=index.digest)


def shard_folder(shard: Path) -> Path:
    """Return where the fingerprints of a shard lie."""
    return shard.with_name(shard.name + PRINTS)


def print_folder(folder: Path, *, workers: int = 1) -> Printed:
    """Return the fingerprints of the videos in a folder and the folders in it; made when files have changed.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in VIDEO and path.is_file())
    if not paths:
        raise ValueError(f"{folder}: neither shards nor videos are there")
    keys = [str(path.relative_to(folder)) for path in paths]
    facts = [(key, path.stat().st_size, path.stat().st_mtime_ns) for key, path in zip(keys, paths, strict=True)]
    digest = hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogateescape")).hexdigest()
    printed = _read(folder / IN_FOLDER, name=str(folder), digest=digest)
    if printed is not None:
        return printed

    def load(row: int) -> tuple[bytes, bytes | None]:
        return paths[row].read_bytes(), None

    return _make(folder / IN_FOLDER, name=str(folder), digest=digest, keys=keys, load=load, workers=workers)


def _make(
    target: Path,
    *,
    name: str,
    digest: str,
    keys: Sequence[str],
    load: Callable[[int], tuple[bytes, bytes | None]],
    workers: int,
) -> Printed:
    """Decode every clip and keep what was found, whole or not at all."""
    empty = Prints(picture=np.zeros((0, SIDE * SIDE * 3), np.uint8), sound=np.zeros((0, BANDS), np.uint8))

    def decoded(row: int) -> Prints | str:
        data, sound = load(row)
        if not data:
            return empty
        try:
            return prints_of(data, name=keys[row], sound=sound)
        except MediaError as error:
            return f"{keys[row]}: {error}"

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        rows = list(watched(pool.map(decoded, range(len(keys))), what="fingerprints", total=len(keys), unit="clip"))
    prints = tuple(empty if isinstance(row, str) else row for row in rows)
    made = Printed(
        name=name, keys=tuple(keys), prints=prints, unread=tuple(row for row in rows if isinstance(row, str))
    )
    try:
        with locked(target.with_name(f"{target.name}.lock")):
            _write(target, made, digest=digest)
    except (OSError, ValueError) as error:  # of `locked`, which says the same of indexes
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        print(f"{target}: cannot be written ({reason}), so they are made again the next time", file=sys.stderr)
    return made


def _write(target: Path, made: Printed, *, digest: str) -> None:
    """Write what was found, whole or not at all. The lock of the folder must be held."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
    partial.mkdir(parents=True)
    try:
        np.save(
            partial / "picture.npy",
            np.concatenate([fingerprint.picture for fingerprint in made.prints] or [_none(SIDE**2 * 3)]),
        )
        np.save(
            partial / "sound.npy", np.concatenate([fingerprint.sound for fingerprint in made.prints] or [_none(BANDS)])
        )
        counts = [(len(fingerprint.picture), len(fingerprint.sound)) for fingerprint in made.prints]
        np.save(partial / "counts.npy", np.array(counts, dtype=np.int64).reshape(-1, 2))
        facts = {"format": FORMAT, "made_from": digest, "keys": made.keys, "unread": made.unread}
        text = sealed(json.loads(json.dumps({**facts, "files": digests(partial, _FILES)})))
        (partial / "meta.json").write_text(text, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _none(width: int) -> np.ndarray:
    return np.zeros((0, width), np.uint8)


def _read(folder: Path, *, name: str, digest: str) -> Printed | None:
    try:
        meta = unsealed((folder / "meta.json").read_text(encoding="utf-8"), name=folder)
        if (meta["format"], meta["made_from"]) != (FORMAT, digest):
            return None
        check(folder, meta["files"])
        picture, sound, counts = (np.load(folder / file, allow_pickle=False) for file in _FILES)
    except (OSError, ValueError, KeyError):
        return None
    return Printed(
        name=name,
        keys=tuple(meta["keys"]),
        prints=tuple(_cut(picture, sound, counts)),
        unread=tuple(meta["unread"]),
    )


def _cut(picture: np.ndarray, sound: np.ndarray, counts: np.ndarray) -> Iterator[Prints]:
    ends = np.cumsum(counts, axis=0)
    for (pictures, sounds), (frames, rows) in zip(ends, counts, strict=True):
        yield Prints(picture=picture[pictures - frames : pictures], sound=sound[sounds - rows : sounds])
