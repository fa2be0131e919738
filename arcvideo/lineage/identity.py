"""Identity of a stage: a hash of everything that decides its outcome."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcvideo.objectives import OBJECTIVES, objective_row
from arcvideo.seals import digest_of

IRRELEVANT = (
    "logger", "run_dir", "data_dir", "base", "parent", "output", "continue_from", "feature_cache", "threads",
    "evaluation", "train_parents", "parents", "verify_resume",
)  # fmt: skip
"""Settings that say where and how visibly a stage runs, not which weights come out; data and parent count by digest,
an evaluation has a digest of its own. It counts where it chooses the weights: `CHOOSING`."""

CHOOSING = ("best", "patience", "every", "style", "items", "max_new_tokens", "loss_packs")
"""Settings of an evaluation that decide which weights come out, with `optimize`, where it stops a run or picks the
best; its shards count by digest."""

IRRELEVANT_WITHIN = {
    "runner": (
        "log_every", "save_every", "keep_last", "keep_every", "save_failures", "hang_seconds", "peak_tflops",
        "liveness", "liveness_scan", "liveness_every", "skip_budget",
    ),
    "data": ("workers", "prefetch_steps", "quarantine", "limits", "shard_cache", "index_dir", "overlap"),
    "engine": ("zero_optimization",),
    "model": ("activation_checkpointing",),
    "next_token": ("log_accuracy",),
    "grpo": ("log_completions", "max_logprob_outliers", "clipped_warning"),
}  # fmt: skip
"""The same, inside a group. How ZeRO cuts the states, like the number of ranks, moves the last bits of sums only."""


def identity(*, config: Mapping[str, Any], data: str, parent: str, code: Mapping[str, str]) -> str:
    """Return the sha256 hex of a stage.

    Args:
        config: resolved settings as plain values; `relevant` is applied here.
        data: digest of what the stage reads.
        parent: identity of the parent stage, or digest of the base weights.
        code: `lineage.code.training_code`: module -> digest.
    """
    return digest_of({"config": relevant(config), "data": data, "parent": parent, "code": dict(code)})


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without those that cannot change the weights."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        if key in IRRELEVANT:
            continue
        dropped = IRRELEVANT_WITHIN.get(key, ())
        settings[key] = {name: item for name, item in value.items() if name not in dropped} if dropped else value
    for group in {row.settings for row in OBJECTIVES.values()} - {_objective_group(settings.get("stage", {}))}:
        settings.pop(group, None)
    if settings.get("lora") is None:
        settings.pop("lora", None)
    if chooses(config):
        evaluation = config["evaluation"]
        settings["evaluation"] = {name: evaluation[name] for name in CHOOSING} | {"optimize": _optimized(evaluation)}
    if "sources" in settings.get("data", {}):
        # Where the shards lie does not matter, their content counts as data.
        sources = settings["data"]["sources"].items()
        plain = {name: {key: value for key, value in source.items() if key != "shards"} for name, source in sources}
        settings["data"] = settings["data"] | {"sources": plain}
    cache = settings.get("data", {}).get("frame_cache")
    if cache is not None:
        # What is stored decides the pixels; where it lies and how large it is do not matter.
        kept = {name: cache[name] for name in ("form", "quality", "candidates") if name in cache}
        settings["data"] = settings["data"] | {"frame_cache": kept if cache["path"] else None}
    return settings


def chooses(config: Mapping[str, Any]) -> bool:
    """Return whether what is measured during training decides which weights come out."""
    evaluation = config.get("evaluation") or {}
    return bool(evaluation.get("best") or evaluation.get("patience"))


def _optimized(evaluation: Mapping[str, Any]) -> str:
    """Return the figure that chooses: by its name, or as far as the default depends on what is measured."""
    return str(evaluation.get("optimize") or f"default of {', '.join(evaluation.get('metrics') or ())}")


def _objective_group(stage: Mapping[str, Any]) -> str:
    """Return the group of settings that a stage's objective reads; none for a record that names no objective we
    know.
    """
    try:
        return objective_row(stage["objective"], feed=stage.get("feed", "")).settings
    except (KeyError, ValueError):
        return ""


def evaluation_digest(settings: Mapping[str, Any], *, code: Mapping[str, str]) -> str:
    """Return the sha256 hex of how a finished stage was measured: settings of the evaluation and its code."""
    # What is done with the numbers afterwards, and what is measured during training.
    shown = ("optimize", "samples", "every", "loss_packs", "best", "patience")
    kept = {key: value for key, value in settings.items() if key not in shown}
    return digest_of({"settings": kept, "code": dict(code)})


def folder_digest(folder: Path, *, patterns: Sequence[str] = ("*.safetensors", "*.json")) -> str:
    """Return the sha256 hex over the files of a folder of weights: names and bytes.

    Raises:
        ValueError: no such files.
    """
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not paths:
        raise ValueError(f"{folder} holds no weights ({', '.join(patterns)})")
    digest = hashlib.sha256()
    for path in paths:
        facts = path.stat()
        digest.update(f"{path.name} {_file_digest(path, facts.st_size, facts.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """Return the sha256 hex of a file; a pipeline asks for the base weights before every stage, and 16 GB take ten
    seconds.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return dotted key -> [old value, new value] of every setting that differs; an absent one is None."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = sorted(before.keys() | after.keys())
    return {key: [before.get(key), after.get(key)] for key in keys if before.get(key) != after.get(key)}


def diff_text(diff: Mapping[str, Sequence[Any]]) -> str:
    """Return a diff for a terminal: one `key: old -> new` a line."""
    return "\n".join(f"  {key}: {json.dumps(old)} -> {json.dumps(new)}" for key, (old, new) in diff.items())


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
