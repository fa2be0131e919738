"""The questions of rejection sampling: which are asked, in which shard they end, and how they are decoded ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from arcvideo.feed.load import FAILURES, Loader
from arcvideo.feed.prompts import Prompt
from arcvideo.media.clip import read_clip
from arcvideo.planning.families import Family
from arcvideo.planning.mixture import index_digest, open_mixture
from arcvideo.planning.prompt_plan import evaluation_families
from arcvideo.planning.random_words import uniforms
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.planning.table import SourceTable
from arcvideo.planning.visits import choose_items
from arcvideo.sampling.settings import SampleSettings
from arcvideo.shards.index import ShardIndex

T = TypeVar("T")
Loaded = tuple[Family, list[Prompt] | Exception]
"""Questions about a clip as prompts, or what makes the clip unusable."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked, and how it is read."""

    table: SourceTable
    families: list[Family]
    """The questions about each clip, in order of the clips."""
    loader: Loader
    digest: str
    """Of the shards' content."""

    def units(self, *, clips: int) -> int:
        """Return number of shards to be written."""
        return -(-self.table.clips // clips)

    def unit(self, number: int, *, clips: int) -> list[Family]:
        """Return what is asked for one of them."""
        return [family for family in self.families if family.clip // clips == number]

    def place(self, clip: int) -> tuple[ShardIndex, int]:
        """Return the index of a clip and its row there."""
        return self.table.place(clip)

    def key(self, family: Family, item: int) -> str:
        """Key of a question."""
        index, row = self.place(family.clip)
        return f"{index.key(row)}/{index.items[self.table.item_row[item]]['number']}"


def open_questions(settings: SampleSettings, *, processor: Any, pool: Any, features: Any, progress: bool) -> Questions:
    """Open the shards and choose what is asked.

    Raises:
        ValueError: shards or tasks that are not there.
    """
    source = SourceSettings(
        shards=settings.shards,
        tasks=dict.fromkeys(settings.tasks, 1.0),
        tags=settings.tags,
        style=settings.style,
        max_clips=settings.max_clips or None,
    )
    data = DataSettings(sources={"shards": source}, wording=processor.wording, token_budget=1 << 40)
    shared = {"layout": processor.layout, "tokenizer": processor.tokenizer}
    opening = partial(open_mixture, data, supervised=False, progress=progress, **shared)
    (table,) = renamed(opening, old="data.sources.shards: ", new="")
    lots = uniforms(table.items, settings.seed, "sample")
    chosen = set(choose_items(table, lots, count=settings.items_per_clip).tolist())
    families = [
        replace(family, items=items)
        for family in evaluation_families(table, source=0, per_task=None)
        if (items := tuple(item for item in family.items if item in chosen))
    ]
    read = pool.read_clip if pool else read_clip
    loader = Loader(table=table, settings=data, features=features, read=read, **shared)
    return Questions(table=table, families=families, loader=loader, digest=index_digest([table]))


def loaded(families: Sequence[Family], *, questions: Questions, size: int) -> Iterator[list[Loaded]]:
    """Yield the families with their prompts, or with what makes them unusable, at least `size` prompts at a time.

    The next ones are decoded while the model works on these.
    """

    def load(family: Family) -> Loaded:
        try:
            return family, questions.loader.prompts(family)
        except FAILURES as error:
            return family, error

    def load_all(batch: Sequence[Family]) -> list[Loaded]:
        return [load(family) for family in batch]

    waiting: deque[Future[list[Loaded]]] = deque()
    with ThreadPoolExecutor(1, "prompts") as thread:
        batch: list[Any] = []
        for number, family in enumerate(families, start=1):
            batch.append(family)
            if number == len(families) or sum(len(queued.items) for queued in batch) >= size:
                waiting.append(thread.submit(load_all, batch))
                batch = []
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def renamed(call: Callable[[], T], *, old: str, new: str) -> T:
    """What a call returns; its errors name the key as it is called here."""
    try:
        return call()
    except ValueError as error:
        raise ValueError(str(error).replace(old, new)) from error
