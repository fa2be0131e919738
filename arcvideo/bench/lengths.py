"""Seconds of media files, for sets whose annotations do not say them: probed once and noted beside the files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from arcvideo.decoding.pool import MediaPool
from arcvideo.decoding.probe import Extent, ProbeJob
from arcvideo.files import write_whole
from arcvideo.media.errors import MediaError
from arcvideo.progress import watched
from arcvideo.tasks import RecordError

NOTED = ".arcvideo-lengths.json"
_FEW = 8
"""So few files are probed in this process: starting others takes longer."""


def clip_lengths(paths: Iterable[Path], *, noted: Path) -> dict[Path, float | RecordError]:
    """Return the seconds of each file as decoding finds them, or why there are none.

    Args:
        paths: media files.
        noted: folder that keeps what was found, so that the next call reads no media; one that cannot be written is
            left alone.
    """
    wanted = sorted(set(paths))
    durations = _noted(noted / NOTED)
    signs = {path: _sign(path) for path in wanted}
    missing = [path for path in wanted if signs[path] not in durations]
    problems: dict[Path, float | RecordError] = {}
    jobs = [ProbeJob(main=Extent(path=path, name=str(path))) for path in missing]
    with MediaPool(count=0 if len(missing) <= _FEW else min(os.cpu_count() or 1, 16)) as pool:
        probes = zip(missing, pool.examined(jobs), strict=True)
        for path, probed in watched(probes, what="lengths", total=len(missing), unit="file"):
            if isinstance(probed, MediaError):
                problems[path] = RecordError("broken_media", f"{path}: {' '.join(str(probed).split())}")
            elif probed is not None:
                durations[signs[path]] = probed.facts.duration
    if missing:
        with suppress(OSError):
            write_whole(noted / NOTED, json.dumps(durations))
    return problems | {path: durations[signs[path]] for path in wanted if signs[path] in durations}


def _noted(path: Path) -> dict[str, float]:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return {key: value for key, value in content.items() if isinstance(value, float) and value > 0}
    return {}


def _sign(path: Path) -> str:
    """Return what a file is known by: a copy of another size or age is probed again."""
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"
