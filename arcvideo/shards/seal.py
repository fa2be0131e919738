"""Seals of files that are written once and trusted ever after, so that a flipped bit is never taken for data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from arcvideo import seals

_SEAL = "seal"


def digests(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return name -> seal of files, to be stored where `check` will look for them."""
    return {name: seals.seal(folder / name) for name in names}


def check(folder: Path, files: Mapping[str, seals.Seal]) -> None:
    """Compare files with their seals, every byte once a machine.

    Raises:
        Damaged: one is missing, cut or changed.
        OSError: the disk refuses to read.
    """
    seals.check_once(folder, files)


DATASET = "dataset.json"
"""What lies beside the shards of TinyShorts."""
LEDGER = ".import.jsonl"
"""End of the name of the list of shards that an import has finished."""
PRINTS = ".fingerprints"
"""End of the name of the folder of a shard's fingerprints."""


def vouched(shard: Path) -> tuple[Path, str] | None:
    """Return the file beside a shard that has its sha256, and that; None when nobody vouches for it.

    Raises:
        Damaged: the file of digests is none.
        OSError: the disk refuses to read.
    """
    side, facts = seals.sidecar(shard), shard.with_name(DATASET)
    if side.exists():
        return side, next(iter(seals.read_sums(side).values()), "")
    try:
        return facts, str(json.loads(facts.read_bytes())["shards"][shard.name]["sha256"])
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, RecursionError):
        return None


def difference(shard: Path) -> str:
    """Return how a shard differs from the digest beside it, with the remedy; empty without one, and when it is whole.

    Every byte is read, once a machine: whoever indexes a shard takes all of it for data.

    Raises:
        OSError: the disk refuses to read.
    """
    try:
        vouching = vouched(shard)
        if vouching is not None:
            check(shard.parent, {shard.name: {"size": shard.stat().st_size, "sha256": vouching[1]}})
    except ValueError:
        return "not the file that was written, by the digest beside it; restore it, or delete that and the index"
    return ""


def sealed(content: Mapping[str, Any]) -> str:
    """Return the JSON text of an object that tells when it was changed."""
    return json.dumps({**content, _SEAL: _seal(content)})


def unsealed(text: str, *, name: Path) -> dict[str, Any]:
    """Return the object of `sealed`.

    Raises:
        ValueError: it is none, or not as it was written.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop(_SEAL, "") != _seal(content):
        raise ValueError(f"{name}: its content is not what was written")
    return content


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
