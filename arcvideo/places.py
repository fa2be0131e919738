"""Where the package keeps its own files, and what a path that somebody typed means."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONF_DIR = (Path(__file__).parent / "conf").resolve()
"""Hydra's groups and config.yaml; in the repository a link to conf/ at its top, in an installed package the files."""
RECIPES = (Path(__file__).parent / "recipes").resolve()
"""The recipes that have a name; a link, likewise."""


def writable(folder: Path) -> bool:
    """Return whether files can be made in a folder, or the folder itself below the nearest one that is there.

    It is tried: what the bits of the modes allow says nothing to root, of /proc, or of a disk that is full.
    """
    there = next((place for place in (folder, *folder.absolute().parents) if os.path.exists(place)), Path("/"))
    try:
        with tempfile.TemporaryDirectory(prefix=".arcvideo-", dir=there):
            return True
    except OSError:
        return False


def no_place(folder: Path, *, run_dir: str) -> str:
    """Return why a run cannot write to a folder of its `run_dir`; empty when it can."""
    return "" if writable(folder) else f"run_dir={run_dir}: {folder} cannot be written; give another run_dir=DIR"


def from_home(value: Any) -> Any:
    """Return a value with every text that begins with `~/` expanded, inside lists and mappings too.

    A shell expands `~` at the beginning of a word only, so `run_dir=~/runs` would make a folder named `~`.
    """
    if isinstance(value, str):
        return os.path.expanduser(value) if value == "~" or value.startswith("~/") else value
    if isinstance(value, Mapping):
        return {key: from_home(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [from_home(entry) for entry in value]
    return value


def words_from_home(words: Sequence[str] | None) -> list[str]:
    """Return words of a command line, None for this process's, with `~/` expanded at their beginning or behind their
    first `=`."""
    expanded = []
    for word in sys.argv[1:] if words is None else words:
        key, equals, value = word.partition("=")
        expanded.append(f"{key}={from_home(value)}" if equals else from_home(word))
    return expanded
