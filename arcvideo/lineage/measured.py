"""Earlier measurements of a stage: what was measured on other questions is kept beside what is measured now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from arcvideo.files import write_whole
from arcvideo.lineage.manifest import finished

MEASURED = "measured"
"""Folder inside a stage's folder with a folder for each earlier measurement."""
_FILES = ("evaluation.json", "predictions.jsonl")


def keep_measurement(folder: Path) -> Path | None:
    """Copy what a finished stage was measured to, before it is measured anew; return where it is kept.

    A folder is named by the digest of the settings and code of its measurement, and `settings.json` in it holds the
    settings. Where the same was measured several times, each is kept unless it came to the same.

    Args:
        folder: of the stage.

    Returns:
        None when there is no measurement.
    """
    manifest, found = finished(folder), folder / _FILES[0]
    if manifest is None or not found.exists():
        return None
    name = manifest.evaluation[:8] or "before"
    place, number = folder / MEASURED / name, 1
    while place.exists():
        if _same(place / _FILES[0], found):
            return place
        number += 1
        place = place.with_name(f"{name}-{number}")
    part = place.with_name(f"{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in (folder / one for one in _FILES):
        if file.exists():
            shutil.copyfile(file, part / file.name)
    write_whole(part / "settings.json", json.dumps(manifest.config.get("evaluation", {}), indent=1) + "\n")
    part.rename(place)
    return place


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.read_bytes() == other.read_bytes()
