"""Identity of a stage: a hash of everything that decides its outcome."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

IRRELEVANT = ("logger", "run_dir", "data_dir", "base", "parent", "output", "feature_cache", "threads")
"""Settings that say where and how visibly a stage runs, not what comes out; data and parent count by their digests."""

IRRELEVANT_WITHIN = {
    "runner": (
        "log_every",
        "save_every",
        "keep_last",
        "keep_every",
        "save_failures",
        "hang_seconds",
        "peak_tflops",
        "liveness",
        "liveness_scan",
        "liveness_every",
    )
}
"""The same, inside a group."""


def identity(*, config: Mapping[str, Any], data: str, parent: str, code: str) -> str:
    """sha256 hex of a stage.

    Args:
        config: resolved settings as plain values; `relevant` is applied here.
        data: digest of what the stage reads.
        parent: identity of the parent stage, or digest of the base weights.
        code: `code_version()`.
    """
    return digest_of({"config": relevant(config), "data": data, "parent": parent, "code": code})


def digest_of(value: Any) -> str:
    """sha256 hex of a JSON-able value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that cannot change the outcome."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key in IRRELEVANT:
            continue
        dropped = IRRELEVANT_WITHIN.get(key, ())
        kept[key] = {name: item for name, item in value.items() if name not in dropped} if dropped else value
    return kept


@functools.cache
def code_version() -> str:
    """sha256 hex over the package's Python files: the code as it is, committed or not."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def folder_digest(folder: Path, *, patterns: Sequence[str] = ("*.safetensors", "*.json")) -> str:
    """sha256 hex over the files of a folder of weights: names and bytes.

    Raises:
        ValueError: no such files.
    """
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not paths:
        raise ValueError(f"{folder} holds no weights ({', '.join(patterns)})")
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Dotted key -> [old value, new value] of every setting that differs; an absent one is None."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = sorted(before.keys() | after.keys())
    return {key: [before.get(key), after.get(key)] for key in keys if before.get(key) != after.get(key)}


def diff_text(diff: Mapping[str, Sequence[Any]]) -> str:
    """A diff for a terminal: one `key: old -> new` a line."""
    return "\n".join(f"  {key}: {json.dumps(old)} -> {json.dumps(new)}" for key, (old, new) in diff.items())


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
