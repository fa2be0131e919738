"""A clip as the model will see it, as text: media facts, segments, and tokens coloured by what they are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from PIL import Image

from arcvideo.data.sheet import contact_sheet
from arcvideo.feed.collate import Rendered, collate
from arcvideo.feed.load import Loader
from arcvideo.layout import MediaLayout
from arcvideo.media.frames import stamp_text, time_spans
from arcvideo.model.special import special_ids
from arcvideo.planning.families import Family
from arcvideo.planning.mixture import open_mixture
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.planning.table import SourceTable
from arcvideo.shards.index import ShardIndex
from arcvideo.types import Batch, Media

_UNBOUNDED = 1 << 30
_MOST_STAMPS = 8
_COLOURS = {"supervised": "\033[32m", "media": "\033[36m", "prompt": "\033[0m", "off": "\033[0m"}


@dataclass(frozen=True, kw_only=True)
class View:
    """How to look at a shard."""

    layout: MediaLayout
    tokenizer: Any
    style: str = "plain"
    wording: str = "arc"
    token_budget: int | None = None
    """Show as many frames as this leaves room for (over_budget=fewer_frames); None shows all."""
    colour: bool = True
    ids: bool = False
    """Print token ids instead of text."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A clip of a shard, rendered with all of its items."""

    index: ShardIndex
    row: int
    families: tuple[Rendered, ...]
    """Items with the same text before the media share a prefix, the others have one of their own."""
    view: View
    max_frames: int
    """Frames that the clip may have."""


def look(index: ShardIndex, *, view: View, key: str | None = None) -> Looked:
    """Return the clip with this key, or the first.

    Raises:
        ValueError: no such key, or nothing usable.
    """
    table = view_table(index, view=view)
    keys = [table.key(clip) for clip in range(table.clips)]
    if key is not None and key not in keys:
        problems = [problem for problem in index.problems() if problem.key.split("/")[0] == key or problem.key == key]
        why = (
            f"it is quarantined: {problems[0].reason}: {problems[0].detail}" if problems else f"the first is {keys[0]}"
        )
        raise ValueError(f"{index.shard}: no usable record {key!r}; {why}")
    clip = keys.index(key) if key is not None else 0
    items = range(int(table.item_start[clip]), int(table.item_start[clip + 1]))
    groups: dict[int, list[int]] = {}
    for item in items:
        groups.setdefault(int(table.item_group[item]), []).append(item)
    loader = Loader(
        table=table, settings=DataSettings(wording=view.wording), layout=view.layout, tokenizer=view.tokenizer
    )
    rendered = [
        loader.rendered(Family(source=0, clip=clip, items=tuple(group), tokens=0, modality="both", seed=0))
        for group in groups.values()
    ]
    families = tuple(family for part in rendered for family in part)
    return Looked(
        index=index,
        row=int(table.clip_row[clip]),
        families=families,
        view=view,
        max_frames=int(table.frame_limit[clip]),
    )


def describe(looked: Looked) -> Iterator[str]:
    """Yield lines about a clip: its media, segments, truths and coloured tokens."""
    families, view = looked.families, looked.view
    batch = collate(families, specials=special_ids(view.tokenizer), weighting="sqrt")
    yield from _facts(looked)
    yield from _segments(batch, families)
    for sample in (sample for family in families for sample in family.samples):
        yield f"truth {sample.key} [{sample.task}]: {dict(sample.truth)}"
    yield from _tokens(batch, view=view)


def picture(looked: Looked) -> Image.Image:
    """Return the clip's stamped frames and its log-mel on one sheet.

    Raises:
        ValueError: the record has text only.
    """
    key = looked.index.key(looked.row)
    if not looked.families[0].media:
        raise ValueError(f"{looked.index.shard}: {key} is text only, there is nothing to draw")
    media = looked.families[0].media
    if len(media) > 1:
        raise ValueError(f"{looked.index.shard}: {key} has {len(media)} media; a sheet shows one")
    return contact_sheet(media[0], title=f"{key}   {float(looked.index.clips[looked.row]['duration']):.2f} s")


def view_table(index: ShardIndex, *, view: View) -> SourceTable:
    """Return the shard as a source of its own, without a budget."""
    source = SourceSettings(shards=str(index.shard), style=view.style)
    settings = DataSettings(
        sources={"shard": source},
        token_budget=view.token_budget or _UNBOUNDED,
        over_budget="fewer_frames",
        wording=view.wording,
    )
    (table,) = open_mixture(settings, layout=view.layout, tokenizer=view.tokenizer, supervised=False, progress=False)
    return table


def _facts(looked: Looked) -> Iterator[str]:
    index, row, rendered = looked.index, looked.row, looked.families[0]
    clip = index.clips[row]
    yield f"key      {index.key(row)}   in {index.shard}"
    if not rendered.media:
        yield "media    none (text only)"
        return
    yield f"media    {clip['duration']:.2f} s, {clip['media_size']} bytes, sha256 {bytes(clip['digest']).hex()[:16]}"
    for facts, media in zip(index.media(row), rendered.media, strict=True):
        yield from _medium(facts, media, max_frames=looked.max_frames)


def _medium(facts: np.void, media: Media, *, max_frames: int) -> Iterator[str]:
    limit = min(max_frames, media.frame_count) if media.frame_count < facts["duration"] else max_frames
    spans = time_spans(duration=float(facts["duration"]), max_frames=limit)
    shape = None if media.pixels is None else tuple(media.pixels.shape)
    mel = None if media.mel is None else tuple(media.mel.shape)
    yield f"picture  {'yes' if media.has_video else 'absent, zeros'}; {media.frame_count} frames {shape}"
    yield f"sound    {'yes' if media.has_audio else 'absent, zeros'}; {media.seconds} s are added to frames, mel {mel}"
    stamps = [stamp_text(span) for span in spans]
    shown = stamps if len(stamps) <= _MOST_STAMPS else [*stamps[:3], "...", *stamps[-2:]]
    yield f"stamps   {', '.join(shown)}"


def _segments(batch: Batch, families: Sequence[Rendered]) -> Iterator[str]:
    yield f"row      {batch.input_ids.numel()} tokens, {batch.target_ids.numel()} supervised"
    yield "segment  parent  start  length  positions      supervised  what"
    starts = batch.segments.starts.tolist()
    names = []
    for family in families:
        names += ["the clip, seen by those below"] * bool(len(family.prefix))
        names += [f"{sample.key} {sample.task}" for sample in family.samples]
    for number, parent in enumerate(batch.segments.parents.tolist()):
        start, end = starts[number], starts[number + 1]
        first, last = batch.position_ids[0, start].item(), batch.position_ids[0, end - 1].item()
        inside = (batch.target_positions + 1 >= start) & (batch.target_positions + 1 < end)
        shown = "-" if parent < 0 else str(parent)
        columns = f"{number:>7}{shown:>8}{start:>7}{end - start:>8}  {first:>5}..{last:<7}{int(inside.sum()):>10}"
        yield f"{columns}  {names[number]}"


def _tokens(batch: Batch, *, view: View) -> Iterator[str]:
    """Yield the row, one segment a line; image tokens and equal frames are counted instead of printed."""
    ids = batch.input_ids.numpy()
    supervised = np.zeros(len(ids), dtype=bool)
    supervised[batch.target_positions.numpy() + 1] = True  # here every target stands right behind its position
    image = special_ids(view.tokenizer).image
    kinds = np.where(ids == image, "media", np.where(supervised, "supervised", "prompt"))
    starts = batch.segments.starts.tolist()
    marks = {kind: _coloured(kind, kind, colour=view.colour) for kind in ("prompt", "media", "supervised")}
    yield f"tokens   {', '.join(marks.values())}; new lines are \\n"
    for number, (start, end) in enumerate(pairwise(starts)):
        pieces = []
        for kind, run in groupby(range(start, end), key=lambda place: str(kinds[place])):
            places = list(run)
            pieces.append((_text(ids[places], kind=kind, view=view), kind))
        shown = "".join(
            (_coloured(text, kind, colour=view.colour) + (" " if view.ids else "")) if kind else text
            for text, kind in _without_repeats(pieces)
        )
        yield f"--- segment {number}: {shown}"


def _text(ids: np.ndarray, *, kind: str, view: View) -> str:
    if kind == "media":
        return f"{ids[0]} x{len(ids)}" if view.ids else f"<IMG x{len(ids)}>"
    return " ".join(map(str, ids.tolist())) if view.ids else view.tokenizer.decode(ids).replace("\n", "\\n")


def _without_repeats(pieces: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield (text, kind) pieces; frames behind the first that print the same are only counted (a piece of no kind)."""
    place = 0
    while place < len(pieces):
        pair = pieces[place : place + 2]
        again = 0
        while pair[0][1] == "media" and pieces[place + 2 * (again + 1) : place + 2 * (again + 2)] == pair:
            again += 1
        yield from pair[: 2 if again else 1]
        if again:
            yield f" ... {again} more like this ... ", ""
        place += 2 * (again + 1) if again else 1


def _coloured(text: str, kind: str, *, colour: bool) -> str:
    if colour:
        return f"{_COLOURS[kind]}{text}{_COLOURS['off']}"
    return f"[[{text}]]" if kind == "supervised" else text
