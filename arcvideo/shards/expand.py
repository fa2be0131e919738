"""The tar files that a name stands for: braces, globs, URLs."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import braceexpand

from arcvideo.media.settings import ShardCacheSettings
from arcvideo.shards.remote import ShardCache, is_url


def expand_shards(pattern: str, *, cache: ShardCacheSettings | None = None, fetch: bool = True) -> list[Path]:
    """Return the tar files of a path or URL with {000..011} braces, or of a path with * globs, in order.

    Args:
        cache: where copies of remote shards lie; None refuses URLs.
        fetch: False gives the paths of such copies without looking whether they are there.

    Raises:
        ValueError: a `pipe:` command, a file that does not exist, a URL that cannot be fetched.
    """
    if not pattern:
        raise ValueError("shards is empty: give the path of tar files, for example data/train-{000..007}.tar")
    if pattern.startswith(("pipe:", "file:")):
        raise ValueError(f"shards={pattern!r}: give paths or URLs of tar files; commands and file: are refused")
    paths: list[Path] = []
    for part in braceexpand.braceexpand(os.path.expanduser(pattern)):
        if part.startswith("pipe:") or is_url(part):
            paths.append(_copy_of(part, pattern=pattern, cache=cache, fetch=fetch))
            continue
        names = sorted(glob.glob(part)) if any(sign in part for sign in "*?[") else [part]
        local = [Path(name) for name in names if not name.endswith((".index", ".lock", ".sha256", ".fingerprints"))]
        missing = [str(path) for path in local if not path.is_file()]
        if missing:
            raise ValueError(f"shards={pattern!r}: no such tar file: {missing[0]}")
        paths.extend(local)
    if not paths:
        raise ValueError(f"shards={pattern!r}: no such tar file")
    if len(set(paths)) < len(paths):
        raise ValueError(f"shards={pattern!r}: names a file twice; use weight to repeat a source")
    return paths


def _copy_of(url: str, *, pattern: str, cache: ShardCacheSettings | None, fetch: bool) -> Path:
    try:
        if url.startswith("pipe:"):
            raise ValueError("commands are refused")
        if "*" in url:
            raise ValueError(f"{url}: a URL cannot be globbed; write {{000..011}} braces")
        copies = ShardCache(cache or ShardCacheSettings())
        return copies.fetch(url) if fetch else copies.path(url)
    except ValueError as error:
        raise ValueError(f"shards={pattern!r}: {error}") from error
