"""A checkpoint by its name: a folder here, or a repository of the hub, as transformers takes either."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

SMALL = ("*.json", "*.jinja", "*.tiktoken")
"""What a processor reads; weights are the model's to fetch."""
OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def folder_of(name: str | Path, *, options: Mapping[str, Any]) -> Path:
    """Return the folder of a processor's files, fetched first where the name is that of a repository.

    Args:
        name: of a folder; a text that is none, and may be one, is a repository's.
        options: as `from_pretrained` takes them.

    Raises:
        ValueError: neither.
    """
    place, inside = Path(name), options.get("subfolder") or ""
    if place.is_dir() or isinstance(name, Path):
        return place / inside
    given = {key: options[key] for key in OPTIONS if options.get(key) is not None}
    try:
        return Path(snapshot_download(name, allow_patterns=[f"{inside}*{end}" for end in SMALL], **given)) / inside
    except (OSError, HFValidationError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"{name}: no such folder, nor a repository that can be had: {said}") from None
