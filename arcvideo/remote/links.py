"""A link stands where the copy of a remote shard would: a small file that says which file elsewhere is meant.

So a remote shard is a path like any other, which processes hand to each other. What it says of the remote file is what
the index was made from; when that changes, a new link is written and the index is made anew.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from arcvideo.files import write_whole
from arcvideo.hidden import hidden
from arcvideo.remote.origin import Changed, Identity
from arcvideo.seals import Damaged
from arcvideo.structured import filled

_MAGIC = b"arcvideo link to a remote shard\n"
_LONGEST = 1 << 14
"""Bytes of a link, at most."""


_URLS: dict[Path, str] = {}
"""Path of a link -> URL with its credentials, which no file holds."""
_FOLDERS: set[Path] = set()
"""Where links are believed."""
_WHY = ".changed"
"""Of the file, behind the name of a link that was removed, that says why to every process and rank."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A remote file, as it was when somebody looked."""

    url: str
    identity: Identity


def is_url(name: str) -> bool:
    """Return whether a shard's name is to be fetched."""
    return "://" in name


def read_link(path: Path) -> Link | None:
    """Return what a path links to; None for a file that is a shard itself.

    Raises:
        OSError: there is no such file.
        Changed: the link was removed, by whatever process, because the remote file is another one now.
        Damaged: it begins like a link and is none, or came with somebody's data: nothing is fetched that the user has
            not named.
    """
    try:
        link = _link_at(path)
    except FileNotFoundError:
        with suppress(OSError):
            raise Changed(_why(path).read_text(encoding="utf-8")) from None
        raise
    if link is None:
        return None
    if path.parent not in _FOLDERS:
        raise Damaged(f"{path}: no shard, but a link to {hidden(link.url)}; name that as the shard where it is meant")
    return replace(link, url=_URLS[path]) if path in _URLS else link


def _link_at(path: Path) -> Link | None:
    facts = path.stat()
    if facts.st_size > _LONGEST:
        return None
    return _read(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1 << 15)
def _read(path: Path, *_: int) -> Link | None:
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
        try:
            return filled(Link, json.loads(file.read()))
        except (ValueError, RecursionError) as error:
            said = " ".join(str(error).split())[:200]
            raise Damaged(f"{path}: a damaged link to a remote shard ({said}); delete it, it is made again") from None


def write_link(path: Path, link: Link) -> None:
    """Write a link, whole or not at all; without what its URL has of passwords and tokens."""
    write_whole(path, _MAGIC.decode() + json.dumps(asdict(replace(link, url=hidden(link.url)))))
    _why(path).unlink(missing_ok=True)


def remove_link(path: Path, *, why: str) -> None:
    """Remove the link of a remote file that changed; whoever reads it next, in any process, is told why."""
    with suppress(OSError):  # a disk that takes no more
        write_whole(_why(path), hidden(why))  # first: others are reading
    path.unlink(missing_ok=True)


def _why(path: Path) -> Path:
    return path.with_name(path.name + _WHY)


def know(path: Path, url: str) -> None:
    """Remember the whole URL of a link, and that its folder holds links, for this process alone."""
    _URLS[path] = url
    _FOLDERS.add(path.parent)


def link_or_none(path: Path) -> Link | None:
    """Return what a path links to, believed or not; None also where nothing is, or something else."""
    try:
        return _link_at(path)
    except (OSError, ValueError):
        return None


def is_copy(path: Path) -> bool:
    """Return whether a file in the folder of links is the whole copy of a shard."""
    if re.match(r"[0-9a-f]{16}-", path.name) is None or path.name.endswith((".lock", ".fetch", ".index", _WHY)):
        return False
    return path.is_file() and link_or_none(path) is None
