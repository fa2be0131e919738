"""The tar files that a name stands for: braces, globs, URLs."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

import braceexpand

from arcvideo.files import error_line
from arcvideo.remote.links import is_url
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.shards import ShardCache


def expand_shards(pattern: str, *, cache: ShardCacheSettings | None = None, fetch: bool = True) -> list[Path]:
    """Return the tar files of a path or URL with {000..011} braces, or of a path with * globs, in order.

    Args:
        cache: where links to remote shards and parts of them lie; None refuses URLs.
        fetch: False gives the paths of the links without looking whether they are there.

    Raises:
        ValueError: a `pipe:` command, a file that does not exist, a URL that cannot be fetched.
    """
    if not pattern:
        raise ValueError("shards is empty: give the path of tar files, for example data/train-{000..007}.tar")
    if pattern.startswith(("pipe:", "file:")):
        raise ValueError(f"shards={pattern!r}: give paths or URLs of tar files; commands and file: are refused")
    parts = list(braceexpand.braceexpand(os.path.expanduser(pattern)))
    urls = [part for part in parts if part.startswith("pipe:") or is_url(part)]
    remote = dict(zip(urls, _remote(urls, pattern=pattern, cache=cache, fetch=fetch), strict=True))
    paths: list[Path] = []
    for part in parts:
        if part in remote:
            paths.append(remote[part])
            continue
        names = sorted(glob.glob(part)) if any(sign in part for sign in "*?[") else [part]
        local = [Path(name) for name in names if not name.endswith((".index", ".lock", ".sha256", ".fingerprints"))]
        missing = [str(path) for path in local if not path.is_file()]
        if missing:
            several = "; several are written {a.tar,b.tar}" if "," in missing[0] else ""
            raise ValueError(f"shards={pattern!r}: no such tar file: {missing[0]}{several}")
        paths.extend(local)
    if not paths:
        for part in parts:
            _look_into(part, pattern=pattern)
        raise ValueError(f"shards={pattern!r}: no such tar file")
    if len(set(paths)) < len(paths):
        raise ValueError(f"shards={pattern!r}: names a file twice; use weight to repeat a source")
    return paths


def _look_into(part: str, *, pattern: str) -> None:
    """Tell a folder that cannot be listed from one without tar files; `glob` takes both for empty.

    Raises:
        ValueError: it cannot be.
    """
    plain = re.split(r"[*?\[]", part, maxsplit=1)[0]
    folder = os.path.dirname(plain) or "."
    try:
        os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ValueError(f"shards={pattern!r}: {error_line(error)}") from None


def _remote(urls: Sequence[str], *, pattern: str, cache: ShardCacheSettings | None, fetch: bool) -> list[Path]:
    """Return the paths that stand for remote shards."""
    if not urls:
        return []
    try:
        for url in urls:
            if url.startswith("pipe:"):
                raise ValueError("commands are refused")
            if "*" in url:
                raise ValueError(f"{url}: a URL cannot be globbed; write {{000..011}} braces")
        shards = ShardCache(cache or ShardCacheSettings())
        return shards.fetch_all(urls) if fetch else [shards.path(url) for url in urls]
    except ValueError as error:
        raise ValueError(f"shards={pattern!r}: {error}") from error
