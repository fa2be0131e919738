"""What an epoch of a stage reads: from the plan that training will follow, without a tokenizer and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arcvideo.config import RunConfig
from arcvideo.data.cost import pack_cost
from arcvideo.data.expand import expand_shards
from arcvideo.data.index import ShardIndex, open_index
from arcvideo.data.lengths import LENGTHS, Lengths
from arcvideo.data.mixture import SourceTable, source_table
from arcvideo.data.plan import EpochPlan, Plan
from arcvideo.data.settings import SourceSettings
from arcvideo.data.shares import pass_tokens, with_passes

TAR_BLOCK = 512
LONGEST_PLAN = 1_000_000
"""Visits of an epoch up to which the plan itself is made; above, its expectation stands for it."""
ORDINARY = {"plain": (150, 60), "think": (400, 300), "draft": (400, 300)}
"""Tokens of a question with its answer, and of the answer, where no run has counted them yet."""


@dataclass(frozen=True, kw_only=True)
class AssumedLengths(Lengths):
    """Stands for counts that nobody has made: media still count exactly, and they dominate."""

    items: int
    style: str

    @property
    def rows(self) -> np.ndarray:
        """(items,) of dtype LENGTHS, all alike."""
        rows = np.zeros(self.items, dtype=LENGTHS)
        rows["branch"], rows["targets"] = ORDINARY[self.style]
        return rows


@dataclass(frozen=True, kw_only=True)
class Volume:
    """What one epoch of a stage reads."""

    samples: float
    """Items."""
    tokens: float
    """Of packs, or of prompts."""
    targets: float
    """Supervised tokens."""
    frames: float
    chunks: float
    """Of audio."""
    pairs: float
    """Query-key pairs of attention."""
    packs: int
    steps: int
    """Optimizer steps."""
    longest: int
    """Tokens of the longest pack, or of the longest prompt."""
    how: str
    """plan (what training will do), expected (too much to plan), or assumed (tokens were never counted)."""


def volume(config: RunConfig) -> Volume:
    """An epoch of a stage.

    Raises:
        ValueError: shards or indexes are missing or damaged, or cannot be used; the message names key and remedy.
    """
    reinforced = config.stage.objective == "grpo"
    opened = [_open(name, source, config=config) for name, source in config.data.sources.items()]
    tables = with_passes([table for table, *_ in opened], unit=config.data.unit)
    shares = [share for _, share, _ in opened]
    counted = all(known for *_, known in opened)
    chunk = config.layout.chunk_seconds
    if reinforced:
        return _prompts(tables, config=config, chunk=chunk, how="plan" if counted else "assumed")
    if sum(table.passes * table.clips for table in tables) > LONGEST_PLAN:
        return _expected(tables, shares=shares, config=config, chunk=chunk)
    planned = plan_of(tables, config=config).epoch(0)
    return _planned(planned, shares=shares, config=config, chunk=chunk, how="plan" if counted else "assumed")


def plan_of(tables: Sequence[SourceTable], *, config: RunConfig) -> Plan:
    """The plan that training will follow."""
    return Plan(
        tables,
        seed=config.runner.seed,
        token_budget=config.data.token_budget,
        packs_per_step=config.data.packs_per_step,
        cost=pack_cost(config.model, trained=config.stage.train, towers=not config.feature_cache),
    )


def _open(name: str, source: SourceSettings, *, config: RunConfig) -> tuple[SourceTable, float, bool]:
    """The table of a source, its targets per token behind the media, and whether its tokens were counted."""
    try:
        shards = expand_shards(source.shards)
    except ValueError as error:
        raise ValueError(f"data.sources.{name}.{error}") from None
    indexes = [_index(shard, name=name, source=source) for shard in shards]
    lengths = [_lengths(index, style=source.style, wording=config.data.wording) for index in indexes]
    try:
        table = source_table(
            name, indexes, lengths, source=source, settings=config.data, layout=config.layout,
            supervised=config.stage.objective != "grpo",
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"data.sources.{name}: {error}") from None
    targets = sum(float(length.rows["targets"].sum()) for length in lengths)
    branches = sum(float(length.rows["branch"].sum()) for length in lengths)
    return table, targets / max(branches, 1.0), not any(isinstance(length, AssumedLengths) for length in lengths)


def _index(shard: Path, *, name: str, source: SourceSettings) -> ShardIndex:
    with open(shard, "rb") as file:
        header = file.read(TAR_BLOCK)
    if len(header) < TAR_BLOCK or header[257:262] != b"ustar":
        raise ValueError(f"data.sources.{name}: {shard} is no tar file; write the shard again")
    index = open_index(shard)
    if index is None:
        raise ValueError(
            f"data.sources.{name}: {shard} has no index, or changed since; run "
            f"`python -m arcvideo.data.shards index '{source.shards}'`"
        )
    return index


def _lengths(index: ShardIndex, *, style: str, wording: str) -> Lengths:
    """The newest counts, whichever tokenizer made them."""
    found = [
        path for path in index.folder.glob(f"tokens-*-{style}-{wording}.npy") if path.with_suffix(".jsonl").exists()
    ]
    if found:
        return Lengths(path=max(found, key=lambda path: path.stat().st_mtime), problems=[])
    return AssumedLengths(path=index.folder, problems=[], items=len(index.items), style=style)


def _planned(plan: EpochPlan, *, shares: Sequence[float], config: RunConfig, chunk: int, how: str) -> Volume:
    families = plan.families
    squares = np.concatenate([[0], np.cumsum(families.branch**2)])
    own = families.tokens - families.prefix
    pairs = (families.prefix**2 + squares[families.hi] - squares[families.lo]) / 2 + own * families.prefix
    totals = np.concatenate([[0], np.cumsum(families.tokens[plan.pack_family])])
    return Volume(
        samples=float((families.hi - families.lo).sum()),
        tokens=float(families.tokens.sum()),
        targets=float((own * np.asarray(shares)[families.source]).sum()),
        frames=float(families.frames.sum()),
        chunks=float(np.ceil(families.frames / chunk).sum()),
        pairs=float(pairs.sum()),
        packs=plan.packs,
        steps=plan.packs // config.data.packs_per_step,
        longest=int(np.diff(totals[plan.pack_start]).max()),
        how=how,
    )


def _expected(tables: Sequence[SourceTable], *, shares: Sequence[float], config: RunConfig, chunk: int) -> Volume:
    rows = [_expected_source(table, share=share, chunk=chunk) for table, share in zip(tables, shares, strict=True)]
    samples, tokens, targets, frames, chunks, pairs = np.sum(rows, axis=0).tolist()
    packs = -(-int(tokens) // config.data.token_budget)
    return Volume(
        samples=samples, tokens=tokens, targets=targets, frames=frames, chunks=chunks, pairs=pairs, packs=packs,
        steps=max(1, -(-packs // config.data.packs_per_step)), longest=config.data.token_budget, how="expected",
    )  # fmt: skip


def _expected_source(table: SourceTable, *, share: float, chunk: int) -> tuple[float, ...]:
    items, start = np.diff(table.item_start), table.item_start[:-1]
    drawn = np.minimum(items, table.settings.items_per_clip or items)
    branch = np.add.reduceat(table.item_branch, start) / items
    prefix = np.where(table.media_tokens > 0, 1 + table.media_tokens, 0)
    pairs = prefix**2 / 2 + drawn * (branch**2 / 2 + branch * prefix)
    columns = (drawn, drawn * branch * share, table.frames, np.ceil(table.frames / chunk), pairs)
    samples, targets, frames, chunks, pairs_sum = (table.passes * float(column.sum()) for column in columns)
    return samples, table.passes * pass_tokens(table), targets, frames, chunks, pairs_sum


def _prompts(tables: Sequence[SourceTable], *, config: RunConfig, chunk: int, how: str) -> Volume:
    """Prompts are asked one by one, each behind its own clip."""
    rows, longest = [], 0
    for table in tables:
        items = np.diff(table.item_start)
        drawn = np.minimum(items, table.settings.items_per_clip or items) / items
        often = table.passes * np.repeat(drawn, items)
        clip = table.item_clip
        media = table.media_tokens[clip]
        tokens = np.where(media > 0, 1 + table.item_before + media, 0) + table.item_branch
        columns = (np.ones(len(tokens)), tokens, table.frames[clip], np.ceil(table.frames[clip] / chunk), tokens**2 / 2)
        rows.append([float((often * column).sum()) for column in columns])
        longest = max(longest, int(tokens.max()))
    samples, tokens_sum, frames, chunks, pairs = np.sum(rows, axis=0).tolist()
    return Volume(
        samples=samples, tokens=tokens_sum, targets=0.0, frames=frames, chunks=chunks, pairs=pairs,
        packs=-(-int(samples) // config.grpo.prompts_per_batch),
        steps=max(1, int(samples) // config.grpo.num_prompts) * config.grpo.num_iterations, longest=longest, how=how,
    )  # fmt: skip
