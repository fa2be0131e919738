"""Where the package keeps its own files, and what a path that somebody typed means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TOP = Path(__file__).resolve().parent.parent
CONF_DIR = _TOP / "conf"
"""Hydra's groups and config.yaml."""
RECIPES = _TOP / "recipes"
"""The recipes that have a name."""


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
