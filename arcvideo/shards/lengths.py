"""Token counts of every item of a shard, kept beside its index per tokenizer, answer style and wording."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.files import read_lines, whole, write_lines, write_whole
from arcvideo.progress import counted
from arcvideo.render import (
    TEXT_FORMAT,
    fingerprint,
    render_branch,
    render_shared,
    render_whole,
    split_question,
    written,
)
from arcvideo.shards.index import ShardIndex, lock_file
from arcvideo.shards.locks import in_turns
from arcvideo.shards.members import Problem
from arcvideo.shards.rows import mapped_npy
from arcvideo.shards.seal import check, digests, sealed, unsealed
from arcvideo.tasks import RecordError, has_pair, make_pair, make_sample
from arcvideo.tasks.fields import SUFFIXES

LENGTHS = np.dtype([("before", "<i4"), ("branch", "<i4"), ("targets", "<i4"), ("group", "<i4")])
"""Tokens before the media, of the branch, and supervised ones; items of a clip with equal text before their media
share a `group` and so a prefix. branch 0: the item cannot be rendered."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Token counts of a shard."""

    path: Path
    problems: list[Problem]

    @property
    def rows(self) -> np.ndarray:
        """(items,) of dtype LENGTHS, mapped anew each time: a map that is kept costs a file descriptor."""
        return mapped_npy(self.path, LENGTHS)


def all_lengths(
    indexes: Sequence[ShardIndex],
    *,
    tokenizer: Any,
    style: str,
    wording: str,
    pairs: bool = False,
    progress: bool = True,
) -> list[Lengths]:
    """Return the token counts of the shards' items, counted once and memory-mapped ever after.

    Processes that ask for the same at the same time, such as the ranks of a run, divide the shards among themselves.

    Args:
        indexes: of the shards.
        tokenizer: counts.
        style: of the questions.
        wording: of the prompts.
        pairs: count both answers of items that have a rejected one, and nothing for the others.
        progress: show a bar.

    Raises:
        ValueError: counts are missing and the shards' folder cannot be written.
    """
    name = counts_name(tokenizer, style=style, wording=wording, pairs=pairs)
    by_shard = {index.shard: index for index in indexes}

    def done(shard: Path) -> bool:
        return _is_whole(by_shard[shard], name)

    def work(shard: Path) -> None:
        index = by_shard[shard]
        rows, problems = _count(index, tokenizer=tokenizer, style=style, wording=wording, pairs=pairs)
        with whole(_rows(index, name)) as temporary, open(temporary, "wb") as file:
            np.save(file, rows, allow_pickle=False)
        write_lines(_listed(index, name), map(asdict, problems))
        files = digests(index.folder, (_rows(index, name).name, _listed(index, name).name))
        write_whole(seal_of(index.folder, name), sealed({"files": files}))  # written last

    missing = [shard for shard in by_shard if not done(shard)]
    hidden = not progress or len(missing) < 2
    with counted(what="count tokens", total=len(missing), unit="shard", quiet=hidden) as advance:
        in_turns(
            missing,
            done=done,
            work=work,
            advance=advance,
            lock=lambda shard: lock_file(shard, place=by_shard[shard].place),
        )
    return [_read(index, name) for index in indexes]


def counts_name(tokenizer: Any, *, style: str, wording: str, pairs: bool = False) -> str:
    """Return what the counts of `all_lengths` are called: equal where they would be equal."""
    return f"tokens-{fingerprint(tokenizer)}-{_rules()}-{style}-{wording}" + ("-pairs" if pairs else "")


def _rows(index: ShardIndex, name: str) -> Path:
    return index.folder / f"{name}.npy"


def _listed(index: ShardIndex, name: str) -> Path:
    return index.folder / f"{name}.jsonl"


def seal_of(folder: Path, name: str) -> Path:
    """Return the file in a shard's index that is written when the counts of this name are complete."""
    return folder / f"{name}.seal.json"


def _is_whole(index: ShardIndex, name: str) -> bool:
    """Return whether the counts are there and as they were written; otherwise they are made again."""
    path = seal_of(index.folder, name)
    try:
        check(index.folder, unsealed(path.read_text(encoding="utf-8"), name=path)["files"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError) as error:
        print(f"{index.folder}: token counts damaged, made again: {error}", file=sys.stderr)
        return False
    return True


def _read(index: ShardIndex, name: str) -> Lengths:
    return Lengths(path=_rows(index, name), problems=[Problem(**row) for row in read_lines(_listed(index, name))])


@lru_cache(maxsize=1)
def _rules() -> str:
    """Change with the instruction texts and the rendering, so that old counts are not used."""
    return hashlib.sha256(json.dumps([TEXT_FORMAT, SUFFIXES]).encode()).hexdigest()[:8]


def _count(
    index: ShardIndex, *, tokenizer: Any, style: str, wording: str, pairs: bool
) -> tuple[np.ndarray, list[Problem]]:
    items = index.items  # a property that looks the file up each time
    rows = np.zeros(len(items), dtype=LENGTHS)
    problems: list[Problem] = []
    # What stands before the media beside text of the item; the plan counts one token of it itself.
    opening = len(written("opening", tokenizer)) - 1
    for number, clip in enumerate(index.clips):
        key = index.key(number)
        try:
            record = index.record(number)
        except RecordError as error:
            problems.append(Problem(key=key, stage="tokens", reason=error.reason, detail=error.detail))
            continue
        media_key = key if clip["media_size"] else None
        groups: dict[Any, int] = {}
        media_count = index.media_count(number)
        for row in range(int(clip["item_start"]), int(clip["item_start"] + clip["item_count"])):
            item = int(items[row]["number"])
            content = record["items"][item]
            about: dict[str, Any] = {
                "key": f"{key}/{item}", "media_key": media_key, "style": style, "media_count": media_count
            }  # fmt: skip
            if pairs and not has_pair(content):
                continue
            try:
                samples = make_pair(content, **about) if pairs else (make_sample(content, **about),)
                question = split_question(samples[0])
                # Media are counted where their frames are known.
                nothing = [np.zeros(0, dtype=np.int64)] * media_count
                if question.later:  # not cut, so nothing is shared
                    whole = render_whole(samples[0], media=nothing, tokenizer=tokenizer, wording=wording)
                    size = (opening, len(whole.ids) - 1 - opening, whole.is_target.sum())
                    rows[row] = (*size, groups.setdefault(row, len(groups)))
                    continue
                branches = [render_branch(sample, tokenizer=tokenizer, wording=wording) for sample in samples]
                shared = render_shared(question.texts, media=nothing[: len(question.texts)], tokenizer=tokenizer)
                rows[row] = (
                    len(shared) - 1,
                    sum(len(branch.ids) for branch in branches),
                    sum(branch.is_target.sum() for branch in branches),
                    groups.setdefault(question.texts, len(groups)),
                )
            except RecordError as error:
                problems.append(Problem(key=f"{key}/{item}", stage="tokens", reason=error.reason, detail=error.detail))
    return rows, problems
