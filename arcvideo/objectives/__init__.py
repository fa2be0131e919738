"""Objectives: from logits at targets and a Batch to a summed Loss. Importing this file does not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

OBJECTIVES: dict[str, str] = {
    "next_token": "arcvideo.objectives.next_token:NextToken",
    "grpo": "arcvideo.objectives.grpo:Grpo",
    "dpo": "arcvideo.objectives.dpo:Dpo",
}
"""Name in `conf/` -> `module:class`; built as `Class(settings)` and called as `objective(logits, batch)`."""


def load_objective(name: str) -> Any:
    """The class behind a name of `OBJECTIVES`, or behind a user's own `package.module:Class`.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    path = OBJECTIVES.get(name, name)
    module, separator, attribute = path.partition(":")
    if not separator:
        known = ", ".join(sorted(OBJECTIVES))
        raise ValueError(f"objective={name!r} is unknown; use one of: {known}, or 'package.module:Class'")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"objective={name!r} cannot be imported: {error}") from error
