"""What an epoch of a stage reads: from the plan that training will follow, without a tokenizer and without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arcvideo.composing.config import RunConfig
from arcvideo.composing.recipe import ExpectedSource
from arcvideo.planning.cost import pack_cost
from arcvideo.planning.mixture import source_table
from arcvideo.planning.plan import Plan
from arcvideo.planning.settings import SourceSettings
from arcvideo.planning.shares import pass_tokens, with_passes
from arcvideo.planning.table import SourceTable, attention_pairs, audio_chunks, prefix_tokens
from arcvideo.planning.window import WindowPlan
from arcvideo.preflight.declared import ORDINARY, Row, declared_longest, declared_row
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ShardIndex, open_index
from arcvideo.shards.lengths import LENGTHS, Lengths

TAR_BLOCK = 512
LONGEST_PLAN = 1_000_000
"""Visits of an epoch up to which the plan itself is made; above, its expectation stands for it."""


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
    """plan (what training will do), expected (too much to plan), assumed (tokens were never counted), or declared
    (shards are not there; the recipe's sizes stand for them)."""


def volume(config: RunConfig, *, expect: Mapping[str, ExpectedSource] | None = None) -> Volume:
    """Return an epoch of a stage.

    Args:
        expect: source -> what the recipe expects of it, for sources whose shards are not there.

    Raises:
        ValueError: shards or indexes are missing or damaged, or cannot be used; the message names key and remedy.
    """
    reinforced = config.objective.sampled
    absent = {name for name in expect or {} if name in config.data.sources and not _there(config.data.sources[name])}
    opened = [_open(name, source, config=config) for name, source in config.data.sources.items() if name not in absent]
    tables = with_passes([table for table, *_ in opened], unit=config.data.unit)
    shares = [share for _, share, _ in opened]
    counted = all(is_counted for *_, is_counted in opened)
    chunk = config.layout.chunk_seconds
    if absent:
        given = {name: expected for name, expected in (expect or {}).items() if name in absent}
        return _declared(tables, shares=shares, given=given, config=config)
    if reinforced:
        return _prompts(tables, config=config, chunk=chunk, how="plan" if counted else "assumed")
    if sum(table.passes * table.clips for table in tables) > LONGEST_PLAN:
        return _expected(tables, shares=shares, config=config, chunk=chunk)
    planned = plan_of(tables, config=config).epoch(0)
    return _planned(planned, shares=shares, config=config, chunk=chunk, how="plan" if counted else "assumed")


def _there(source: SourceSettings) -> bool:
    """Return whether some shard of a source is on this disk; what cannot be read is told when it is opened."""
    try:
        return bool(expand_shards(source.shards))
    except ValueError:
        return "://" in source.shards


def plan_of(tables: Sequence[SourceTable], *, config: RunConfig) -> Plan:
    """Return the plan that training will follow."""
    return Plan(
        tables,
        seed=config.runner.seed,
        token_budget=config.data.token_budget,
        packs_per_step=config.data.packs_per_step,
        cost=pack_cost(config.model, trained=config.stage.train, towers=not config.feature_cache),
    )


def _open(name: str, source: SourceSettings, *, config: RunConfig) -> tuple[SourceTable, float, bool]:
    """Return the table of a source, its targets per token behind the media, and whether its tokens were counted."""
    try:
        shards = expand_shards(source.shards)
    except ValueError as error:
        raise ValueError(f"data.sources.{name}.{error}") from None
    indexes = [_index(shard, name=name, source=source, place=config.data.index_dir or "") for shard in shards]
    paired = "-pairs" if config.objective.paired else ""
    rules = f"{config.data.wording}{paired}"
    lengths = [_lengths(index, style=source.style, rules=rules) for index in indexes]
    try:
        table = source_table(
            name, indexes, lengths, source=source, settings=config.data, layout=config.layout,
            supervised=not config.objective.sampled,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"data.sources.{name}: {error}") from None
    targets = sum(float(length.rows["targets"].sum()) for length in lengths)
    branches = sum(float(length.rows["branch"].sum()) for length in lengths)
    return table, targets / max(branches, 1.0), not any(isinstance(length, AssumedLengths) for length in lengths)


def _index(shard: Path, *, name: str, source: SourceSettings, place: str) -> ShardIndex:
    with open(shard, "rb") as file:
        header = file.read(TAR_BLOCK)
    if len(header) < TAR_BLOCK or header[257:262] != b"ustar":
        raise ValueError(f"data.sources.{name}: {shard} is no tar file; write the shard again")
    index = open_index(shard, place=place)
    if index is None:
        raise ValueError(
            f"data.sources.{name}: {shard} has no index, or changed since; run "
            f"`python -m arcvideo.data.shards index '{source.shards}'`"
        )
    return index


def _lengths(index: ShardIndex, *, style: str, rules: str) -> Lengths:
    """Return the newest counts, whichever tokenizer made them."""
    paths = [path for path in index.folder.glob(f"tokens-*-{style}-{rules}.npy") if path.with_suffix(".jsonl").exists()]
    if paths:
        return Lengths(path=max(paths, key=lambda path: path.stat().st_mtime), problems=[])
    return AssumedLengths(path=index.folder, problems=[], items=len(index.items), style=style)


def _planned(plan: WindowPlan, *, shares: Sequence[float], config: RunConfig, chunk: int, how: str) -> Volume:
    families = plan.families
    own = families.tokens - families.prefix
    totals = np.concatenate([[0], np.cumsum(families.tokens[plan.pack_family])])
    return Volume(
        samples=float((families.hi - families.lo).sum()),
        tokens=float(families.tokens.sum()),
        targets=float((own * np.asarray(shares)[families.source]).sum()),
        frames=float(families.frames.sum()),
        chunks=float(audio_chunks(families.frames, seconds=chunk).sum()),
        pairs=float(families.pairs.sum()),
        packs=plan.packs,
        steps=plan.packs // config.data.packs_per_step,
        longest=int(np.diff(totals[plan.pack_start]).max()),
        how=how,
    )


def _expected(tables: Sequence[SourceTable], *, shares: Sequence[float], config: RunConfig, chunk: int) -> Volume:
    rows = [_expected_source(table, share=share, chunk=chunk) for table, share in zip(tables, shares, strict=True)]
    return _packed(rows, config=config, how="expected")


def _declared(
    tables: Sequence[SourceTable],
    *,
    shares: Sequence[float],
    given: Mapping[str, ExpectedSource],
    config: RunConfig,
) -> Volume:
    """Return sources that are there by their index, the others by what is expected of them."""
    chunk, sources = config.layout.chunk_seconds, config.data.sources
    declared = [declared_row(sources[name], expected, name=name, config=config) for name, expected in given.items()]
    if config.objective.sampled:
        prompted = [_prompt_row(table, chunk=chunk) for table in tables]
        lengths = [declared_longest(sources[name], expected, config=config) for name, expected in given.items()]
        longest = max([*lengths, *(length for _, length in prompted)])
        return _asked([*declared, *(row for row, _ in prompted)], longest=longest, config=config, how="declared")
    rows = [_expected_source(table, share=share, chunk=chunk) for table, share in zip(tables, shares, strict=True)]
    return _packed([*declared, *rows], config=config, how="declared")


def _packed(rows: Sequence[Row], *, config: RunConfig, how: str) -> Volume:
    total = Row(*np.sum(rows, axis=0).tolist())
    packs = -(-int(total.tokens) // config.data.token_budget)
    return Volume(
        **total._asdict(), packs=packs, steps=max(1, -(-packs // config.data.packs_per_step)),
        longest=config.data.token_budget, how=how,
    )  # fmt: skip


def _expected_source(table: SourceTable, *, share: float, chunk: int) -> Row:
    items, start = np.diff(table.item_start), table.item_start[:-1]
    drawn = np.minimum(items, table.settings.items_per_clip or items)
    branch = np.add.reduceat(table.item_branch, start) / items
    pairs = attention_pairs(prefix_tokens(0, table.media_tokens), drawn * branch, drawn * branch**2)
    columns = (drawn, drawn * branch * share, table.frames, audio_chunks(table.frames, seconds=chunk), pairs)
    samples, targets, frames, chunks, pairs_sum = (table.passes * float(column.sum()) for column in columns)
    return Row(samples, table.passes * pass_tokens(table), targets, frames, chunks, pairs_sum)


def _prompts(tables: Sequence[SourceTable], *, config: RunConfig, chunk: int, how: str) -> Volume:
    prompted = [_prompt_row(table, chunk=chunk) for table in tables]
    return _asked([row for row, _ in prompted], longest=max(length for _, length in prompted), config=config, how=how)


def _prompt_row(table: SourceTable, *, chunk: int) -> tuple[Row, int]:
    """Return prompts are asked one by one, each behind its own clip; and the longest of them."""
    items = np.diff(table.item_start)
    drawn = np.minimum(items, table.settings.items_per_clip or items) / items
    often = table.passes * np.repeat(drawn, items)
    clip = table.item_clip
    tokens = table.tokens
    none = np.zeros(len(tokens))
    chunks = audio_chunks(table.frames[clip], seconds=chunk)
    columns = (np.ones(len(tokens)), tokens, none, table.frames[clip], chunks, attention_pairs(tokens))
    return Row(*(float((often * column).sum()) for column in columns)), int(tokens.max())


def _asked(rows: Sequence[Row], *, longest: int, config: RunConfig, how: str) -> Volume:
    total = Row(*np.sum(rows, axis=0).tolist())
    return Volume(
        **total._asdict(), packs=-(-int(total.samples) // config.grpo.prompts_per_batch),
        steps=max(1, int(total.samples) // config.grpo.num_prompts) * config.grpo.num_iterations,
        longest=longest, how=how,
    )  # fmt: skip
