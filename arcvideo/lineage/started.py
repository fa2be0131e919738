"""What a stage set out to do, written before its first step, and how far its checkpoints reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arcvideo.files import write_whole
from arcvideo.seals import digest_of

STARTED_NAME = "started.json"


def record_start(folder: Path, content: dict[str, Any]) -> None:
    """Write the record of a stage that begins now, with its seal."""
    write_whole(
        folder / STARTED_NAME, json.dumps(content | {"seal": digest_of(content)}, indent=1, sort_keys=True) + "\n"
    )


def read_started(folder: Path) -> dict[str, Any] | None:
    """Return what `record_start` wrote; None when it is not there.

    Raises:
        ValueError: it is not what was written.
    """
    path = folder / STARTED_NAME
    try:
        content = json.loads(path.read_bytes())
        whole = content.pop("seal") == digest_of(content)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: was changed since it was written; delete it, the next run writes it anew")
    return dict(content)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the `step-N` of a folder of checkpoints that has a manifest and the highest N; None without any."""
    folders = [path.parent for path in folder.glob("step-*/manifest.json") if path.parent.name[5:].isdigit()]
    return max(folders, key=lambda path: int(path.name[5:]), default=None)
