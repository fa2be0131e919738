"""Remote shards as paths: a link to what can be read by ranges, a whole copy of what cannot."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

from arcvideo.remote.links import Link, know, link_or_none, write_link
from arcvideo.remote.origin import FSSPEC, NoRanges, Origin, origin_of
from arcvideo.remote.patience import Broken, Patience, Refused
from arcvideo.remote.reading import use
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.whole import WholeCopies, locked, url_schemes

_AT_ONCE = 16
"""Shards that are asked for what they are at once."""
_TRIES = 3
"""Further tries at most to learn what a shard is: whoever mistyped a host is told soon."""
_FRESH = 60.0
"""Seconds for which the answer is believed: the ranks of a node ask one after the other."""


class ShardCache:
    """A folder of links to remote shards, parts of them, and copies; any number of processes may share it."""

    def __init__(self, settings: ShardCacheSettings) -> None:
        """Open the folder; it is made when something is fetched.

        Raises:
            ValueError: no folder is set.
        """
        if settings.path is None:
            raise ValueError("remote shards need a folder for what is kept of them: set data.shard_cache.path")
        self._root = Path(settings.path).expanduser().absolute()
        self._settings = settings
        self._whole = WholeCopies(settings, root=self._root)
        use(settings, root=self._root)

    def path(self, url: str) -> Path:
        """Return where the link to a shard, or its copy, lies or will lie.

        Raises:
            ValueError: no URL that a shard can be read from.
        """
        scheme = urlparse(url).scheme
        schemes = sorted({*FSSPEC, *url_schemes()})
        if scheme not in schemes:
            raise ValueError(f"{url}: {scheme}:// cannot be opened; use one of {', '.join(schemes)}")
        name = re.sub(r"[^\w.-]", "_", Path(urlparse(url).path).name) or "shard.tar"
        return self._root / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"

    def fetch(self, url: str) -> Path:
        """Return the path that stands for a shard.

        Raises:
            ValueError: it cannot be read, or there is no room for a copy of it.
        """
        return self.fetch_all([url])[0]

    def fetch_all(self, urls: Sequence[str]) -> list[Path]:
        """Return the paths that stand for shards, several of them asked for at once."""
        paths = [self.path(url) for url in urls]
        for url, path in zip(urls, paths, strict=True):
            know(path, url)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(_AT_ONCE, "link") as threads:
                linked = list(threads.map(self._linked, urls, paths))
            for url, path, is_link in zip(urls, paths, linked, strict=True):
                if not is_link:
                    with locked(_lock(path)):
                        self._whole.fetch(url, path)
        except OSError as error:  # a full disk, a folder of somebody else
            raise ValueError(f"data.shard_cache.path={self._root}: cannot be used: {error}") from error
        return paths

    def _linked(self, url: str, path: Path) -> bool:
        """Return whether the path is now a link to the file as it is; else only a whole copy will do."""
        with locked(_lock(path)):
            old = link_or_none(path)
            if old is None and path.is_file():
                return False
            if old is not None and time.time() - _lock(path).stat().st_mtime < _FRESH:
                return True
            try:
                origin = origin_of(url, stall_seconds=self._settings.stall_seconds)
                link = None if origin is None else self._link(url, origin)
            except NoRanges:
                print(f"{url}: its server gives whole files only, so the shard is copied", file=sys.stderr)
                link = None
            except ImportError as error:
                scheme = urlparse(url).scheme
                if scheme not in url_schemes() or scheme == "s3":
                    raise ValueError(f"{url}: {scheme}:// needs `pip install {FSSPEC[scheme]}`") from error
                print(f"{url}: the shard is copied; `pip install {FSSPEC[scheme]}` reads parts of it", file=sys.stderr)
                link = None
            if link is None:
                return False
            if old != link:
                if old is not None:
                    print(f"{url}: changed since it was indexed, and is indexed anew", file=sys.stderr)
                write_link(path, link)
            os.utime(_lock(path))
            return True

    def _link(self, url: str, origin: Origin) -> Link:
        few = min(self._settings.retries, _TRIES)
        patience = Patience(url, settings=replace(self._settings, retries=few))
        while True:
            try:
                return Link(url=url, identity=origin.identity())
            except Broken as error:
                patience.broken(error)
            except Refused as error:
                raise patience.named(error) from error


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.fetch")
