"""Token counts of every item of a shard, kept beside its index per tokenizer, answer style and wording."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from arcvideo.data.index import ShardIndex
from arcvideo.data.members import Problem
from arcvideo.data.render import TEXT_FORMAT, encode, fingerprint, render_branch, split_question
from arcvideo.tasks import RecordError, has_pair, make_pair, make_sample
from arcvideo.tasks.instructions import SUFFIXES

LENGTHS = np.dtype([("before", "<i4"), ("branch", "<i4"), ("targets", "<i4"), ("group", "<i4")])
"""Tokens before the media, of the branch, and supervised ones; items of a clip with equal text before their media
share a `group` and so a prefix. branch 0: the item cannot be rendered."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Token counts of a shard."""

    rows: np.ndarray
    """(items,) of dtype LENGTHS."""
    problems: list[Problem]


def shard_lengths(index: ShardIndex, *, tokenizer: Any, style: str, wording: str, pairs: bool = False) -> Lengths:
    """The token counts of a shard's items, counted once and memory-mapped ever after.

    Args:
        pairs: count both answers of items that have a rejected one, and nothing for the others.
    """
    name = f"tokens-{fingerprint(tokenizer)}-{_rules()}-{style}-{wording}" + ("-pairs" if pairs else "")
    table, listed = index.folder / f"{name}.npy", index.folder / f"{name}.jsonl"
    if not listed.exists():  # written last
        rows, problems = _count(index, tokenizer=tokenizer, style=style, wording=wording, pairs=pairs)
        _replace(table, rows)
        _replace(listed, problems)
    rows = np.load(table, mmap_mode="r", allow_pickle=False)
    return Lengths(rows=rows, problems=[Problem(**json.loads(line)) for line in listed.read_text().splitlines()])


def all_lengths(
    indexes: Sequence[ShardIndex],
    *,
    tokenizer: Any,
    style: str,
    wording: str,
    pairs: bool = False,
    progress: bool = True,
) -> list[Lengths]:
    """`shard_lengths` of all shards, with a progress bar when there is something to count."""
    shown = tqdm(indexes, desc="count tokens", unit="shard", disable=not progress or len(indexes) < 2, leave=False)
    return [shard_lengths(index, tokenizer=tokenizer, style=style, wording=wording, pairs=pairs) for index in shown]


@lru_cache(maxsize=1)
def _rules() -> str:
    """Changes with the instruction texts and the rendering, so that old counts are not used."""
    return hashlib.sha256(json.dumps([TEXT_FORMAT, SUFFIXES]).encode()).hexdigest()[:8]


def _count(
    index: ShardIndex, *, tokenizer: Any, style: str, wording: str, pairs: bool
) -> tuple[np.ndarray, list[Problem]]:
    rows = np.zeros(len(index.items), dtype=LENGTHS)
    problems: list[Problem] = []
    for number, clip in enumerate(index.clips):
        record, key = index.record(number), index.key(number)
        media_key = key if clip["media_size"] else None
        groups: dict[str, int] = {}
        for row in range(int(clip["item_start"]), int(clip["item_start"] + clip["item_count"])):
            item = int(index.items[row]["number"])
            content = record["items"][item]
            about: dict[str, Any] = {"key": f"{key}/{item}", "media_key": media_key, "style": style}
            if pairs and not has_pair(content):
                continue
            try:
                samples = make_pair(content, **about) if pairs else (make_sample(content, **about),)
                before = split_question(samples[0]).before
                branches = [render_branch(sample, tokenizer=tokenizer, wording=wording) for sample in samples]
                rows[row] = (
                    len(encode(before, tokenizer=tokenizer)),
                    sum(len(branch.ids) for branch in branches),
                    sum(branch.is_target.sum() for branch in branches),
                    groups.setdefault(before, len(groups)),
                )
            except RecordError as error:
                problems.append(Problem(key=f"{key}/{item}", stage="tokens", reason=error.reason, detail=error.detail))
    return rows, problems


def _replace(path: Path, content: np.ndarray | list[Problem]) -> None:
    """Writes a file that is there whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(scratch, "wb") as file:
        if isinstance(content, np.ndarray):
            np.save(file, content, allow_pickle=False)
        else:
            file.write("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in content).encode())
    os.replace(scratch, path)
