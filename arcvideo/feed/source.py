"""Source: this rank's batches or prompts of any global step, decoded ahead in the background."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Thread, current_thread
from typing import Any

import numpy as np

from arcvideo.decoding.cache import FrameCache
from arcvideo.decoding.pool import MediaPool
from arcvideo.feed.ahead import Ahead
from arcvideo.feed.collate import Rendered, collate
from arcvideo.feed.load import FAILURES, Features, Loader
from arcvideo.feed.prompts import Prompt, Question, StepPrompts
from arcvideo.feed.quarantine import Quarantine
from arcvideo.layout import MediaLayout
from arcvideo.media.fast import check_decoder
from arcvideo.model.special import special_ids
from arcvideo.planning.cost import PackCost
from arcvideo.planning.families import Family
from arcvideo.planning.mixture import index_digest, open_mixture
from arcvideo.planning.plan import Plan
from arcvideo.planning.prompt_plan import PromptPlan, evaluation_families
from arcvideo.planning.settings import DataSettings
from arcvideo.planning.shares import mixture_report, realised, realised_prompts, with_passes
from arcvideo.planning.table import SourceTable
from arcvideo.remote.links import is_url
from arcvideo.remote.reading import forget, halt, want
from arcvideo.shards.members import Problem
from arcvideo.types import Batch, Counts, StepData


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """What was made of a family: rows of a batch or prompts, or nothing."""

    family: Family
    rows: Sequence[Rendered] = ()
    prompts: Sequence[Prompt] = ()
    problem: Problem | None = None
    """Why there is nothing, when that is news."""
    lost: bool = False


@dataclass
class _Step:
    """What was made of one step."""

    batches: list[Batch] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    planned: Counter[str] = field(default_factory=Counter)
    """Items per source."""
    seen: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    """Record keys of the clips that could not be read, now or before."""
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    """Those of them that are new."""

    @property
    def counts(self) -> Counts:
        """Items of the step, by kind and source."""
        assert self.planned == self.seen + self.quarantined
        return {name: dict(getattr(self, name)) for name in ("planned", "seen", "quarantined")}


class Source:
    """Batches and prompts as a pure function of the step; nothing is remembered of the steps before.

    Nothing is replaced: what cannot be read is left out of its pack, written to the quarantine file and counted, so
    that planned = seen + quarantined. A rank whose packs lost everything gets a batch without weight.
    """

    def __init__(
        self,
        settings: DataSettings,
        *,
        layout: MediaLayout,
        tokenizer: Any,
        seed: int,
        rank: int = 0,
        world: int = 1,
        features: Features | None = None,
        quarantine_file: Path | None = None,
        supervised: bool = True,
        pairs: bool = False,
        progress: bool = False,
        cost: PackCost | None = None,
    ) -> None:
        """Open the indexes, and build those that are missing.

        Args:
            seed: of the run: decides order, draws, dropped modalities and random frames.
            features: stored tower outputs; clips in it are not decoded. Not used with frames=random.
            quarantine_file: JSON lines, one file for all ranks.
            supervised: True for `batches`; False for `prompts` and `evaluation`, where sources of style think also
                draw items without reasoning.
            pairs: batches of a chosen and a rejected answer, in this order, for each item that has both; pairs weigh
                the same.
            cost: how long packs take, for an even load of the ranks; None counts tokens alone.

        Raises:
            ValueError: settings or data that cannot work, naming key and remedy.
        """
        if settings.packs_per_step % world:
            raise ValueError(f"data.packs_per_step={settings.packs_per_step} must be a multiple of the {world} ranks")
        check_decoder(settings.decoder)
        self.settings, self.rank, self.world, self.seed = settings, rank, world, seed
        self.supervised = supervised
        self._weighting = "sample" if pairs else settings.length_weighting
        self.specials = special_ids(tokenizer)
        opened = open_mixture(
            settings, layout=layout, tokenizer=tokenizer, supervised=supervised, pairs=pairs, progress=progress
        )
        self.tables: list[SourceTable] = with_passes(opened, unit=settings.unit)
        self.plan = Plan(
            self.tables,
            seed=seed,
            token_budget=settings.token_budget,
            packs_per_step=settings.packs_per_step,
            cost=cost,
        )
        self._prompt_plan = PromptPlan(self.tables, seed=seed)
        self.quarantine = Quarantine(self.tables, settings=settings.quarantine, file=quarantine_file)
        # Threads read, cut mels and render; decoding itself runs in processes that can be killed, also with workers=0.
        self._media = MediaPool(count=max(1, settings.workers), limits=settings.limits)
        self._ahead: Ahead[Family, _Loaded, _Step] | None = None
        self._readers: set[Thread] = set()
        self._closing = False
        self._planner: ThreadPoolExecutor | None = None
        if settings.workers:
            self._ahead = Ahead(workers=settings.workers, load=self._attempt)
            self._planner = ThreadPoolExecutor(1, "plan")
        cached = settings.frame_cache.path is not None
        cache = FrameCache(settings.frame_cache, layout=layout) if cached else None
        self._loaders = [
            Loader(
                table=table,
                settings=settings,
                layout=layout,
                tokenizer=tokenizer,
                pairs=pairs,
                features=features,
                cache=cache,
                read=self._media.read_clip,
            )
            for table in self.tables
        ]

    @property
    def digest(self) -> str:
        """Content of all shards, for a stage's identity."""
        return index_digest(self.tables)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch; later ones may differ by a few when only some items of a clip are drawn."""
        return self.plan.first_step(1)

    def prompt_steps_per_epoch(self, count: int) -> int:
        """Steps of `count` prompts in an epoch."""
        return max(1, self._prompt_plan.first(1) // count)

    def batches(self, step: int) -> StepData:
        """Return this rank's packed rows of a global step; always packs_per_step / world of them.

        Raises:
            QuarantineBudgetError: too much damage.
        """
        assert self.supervised, "open the source with supervised=True"
        done = self._finish(self._ready(step, 0))
        return StepData(batches=done.batches, counts=done.counts, lost=tuple(done.lost))

    def prompts(self, step: int, *, count: int) -> StepPrompts:
        """Return this rank's share of the `count` prompts of a global step, each with its place in the stream.

        Unreadable ones are missing, not replaced: the others keep their places.

        Raises:
            QuarantineBudgetError: too much damage.
        """
        if count % self.world:
            raise ValueError(f"{count} prompts per step must be a multiple of the {self.world} ranks")
        done = self._finish(self._ready(step, count))
        return StepPrompts(prompts=done.prompts, counts=done.counts, lost=tuple(done.lost))

    def questions(self) -> list[Question]:
        """Return what `evaluation` gives on all ranks together, in its order, without reading any clip."""
        return [
            self._question(family, item)
            for number, table in enumerate(self.tables)
            for family in evaluation_families(table, source=number, per_task=None)
            for item in family.items
        ]

    def _question(self, family: Family, item: int) -> Question:
        table = self.tables[family.source]
        index, row = table.place(family.clip)
        facts = index.items[table.item_row[item]]
        return Question(
            key=f"{table.key(family.clip)}/{facts['number']}",
            task=table.tasks[table.item_task[item]],
            tags=tuple(index.tagsets[facts["tagset"]]),
            instructed=table.settings.style != "plain",
            has_audio=bool(index.clips[row]["sound_samples"] > 0) and family.modality != "video",
        )

    def evaluation(self, *, per_task: int | None = None, only: Collection[str] | None = None) -> Iterator[Prompt]:
        """Yield this rank's block of all items in index order, or of some.

        Args:
            per_task: that many of each task, spread over the source.
            only: keys of the items that are wanted; clips without any are not read.
        """
        families = [
            replace(family, items=items)
            for number, table in enumerate(self.tables)
            for family in evaluation_families(table, source=number, per_task=per_task)
            if (items := tuple(i for i in family.items if only is None or self._question(family, i).key in only))
        ]
        block = np.array_split(np.arange(len(families)), self.world)[self.rank]
        wanted = (families[number] for number in block)
        loading = map(self._attempt, wanted) if self._ahead is None else self._ahead.in_order(wanted)
        for loaded in loading:
            yield from self._finish(self._joined([[loaded]], None)).prompts

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return for each source what the index holds, and the bad samples that all ranks met."""
        return {
            table.name: {
                "clips": table.clips,
                "items": table.items,
                "over_budget": table.dropped,
                "clips_with_fewer_frames": table.shortened,
                "bad_samples": self.quarantine.count(table.name),
                "reasons": dict(self.quarantine.reasons(table.name)),
            }
            for table in self.tables
        }

    def mixture(self, steps: int, *, count: int = 0) -> dict[str, dict[str, Any]]:
        """Return requested beside realised mixture of the first steps, all ranks together.

        Args:
            steps: of `batches`, or of `prompts`.
            count: prompts of a step; 0 for batches.
        """
        if count:
            rows = realised_prompts(self._prompt_plan, steps=steps, count=count)
        else:
            rows = realised(self.plan, steps=steps)
        return mixture_report(self.tables, unit=self.settings.unit, rows=rows)

    def close(self) -> None:
        """Stop the background threads and processes."""
        forget(None)
        if self._ahead is not None:
            self._closing = True  # seen by threads that begin now; the others are halted
            halt(tuple(self._readers))
            self._ahead.close()
            forget(None)  # what the last of them wanted meanwhile
        if self._planner is not None:
            self._planner.shutdown(wait=True, cancel_futures=True)
        self._media.close()

    def _ready(self, step: int, count: int) -> _Step:
        """Return the step's content; with workers, the following steps are started too."""
        if self._ahead is None:
            packs, places = self._planned(step, count)
            return self._joined([[self._attempt(family) for family in pack] for pack in packs], places)
        if (step, count) not in self._ahead:  # what was read ahead was for other steps
            forget(None)
        self._ahead.keep((number, count) for number in range(step, step + 1 + self._most_ahead))
        clips, last = 0, step + self.settings.prefetch_steps
        for number in range(step, step + 1 + self._most_ahead):
            packs, places = self._planned(number, count)
            if (number, count) not in self._ahead:
                self._want(packs)
                self._ahead.start((number, count), packs, join=partial(self._joined, places=places))
            clips += (number > step) * sum(self._has_media(family) for pack in packs for family in pack)
            if number >= last and clips >= self.settings.workers:
                break
        return self._ahead.take((step, count))

    def _want(self, packs: Sequence[Sequence[Family]]) -> None:
        """Read what packs need of remote shards before their decoders ask for it."""
        limit = self.settings.shard_cache.ahead
        if limit and any(is_url(table.settings.shards) for table in self.tables):
            needed = [self._loaders[family.source].to_read(family) for pack in packs for family in pack]
            want([span for spans in needed for span in spans], limit=limit)

    @property
    def _most_ahead(self) -> int:
        """Steps prepared ahead: `data.prefetch_steps`, and more where those leave decoders without a clip."""
        return self.settings.prefetch_steps + self.settings.workers

    def _has_media(self, family: Family) -> bool:
        return bool(self.tables[family.source].media_tokens[family.clip])

    def _planned(self, step: int, count: int) -> tuple[list[tuple[Family, ...]], range | None]:
        """Return the families of a step; of prompts also their places in the stream."""
        if count:
            share = {"count": count, "rank": self.rank, "world": self.world}
            return [tuple(self._prompt_plan.step(step, **share))], self._prompt_plan.places(step, **share)
        packs = self.plan.step(step, rank=self.rank, world=self.world)
        if self._planner is not None:
            self.plan.prepare(step, self._planner.submit)
        return packs, None

    def _joined(self, packs: list[list[_Loaded]], places: range | None) -> _Step:
        """Return the step made of its families; with places each family is one item, the prompt at the place beside
        it.
        """
        done = _Step()
        for pack in packs:
            for loaded in pack:
                self._note(loaded, done)
            if self.supervised:
                rendered = [row for loaded in pack for row in loaded.rows]
                done.batches.append(collate(rendered, specials=self.specials, weighting=self._weighting))
            else:
                for number, loaded in enumerate(pack):
                    place = None if places is None else places[number]
                    done.prompts += [replace(prompt, place=place) for prompt in loaded.prompts]
        return done

    def _attempt(self, family: Family) -> _Loaded:
        """Return what can be made of the family; any thread may ask.

        Raises:
            OSError: its shard is gone, or the machine has no room: nothing that the family would be lost for.
        """
        if self._ahead is not None:
            self._readers.add(current_thread())
            if self._closing:
                halt([current_thread()])
        table, loader = self.tables[family.source], self._loaders[family.source]
        key = table.key(family.clip)
        try:
            if self.quarantine.unreadable(table.name, key):
                return _Loaded(family=family, lost=True)
            if self.supervised:
                return _Loaded(family=family, rows=loader.rendered(family))
            return _Loaded(family=family, prompts=loader.prompts(family))
        except FAILURES as error:
            problem = Problem(
                key=key,
                stage="read" if isinstance(error, OSError) else "media",
                reason=getattr(error, "reason", type(error).__name__),
                detail=getattr(error, "detail", str(error)),
                shard=table.place(family.clip)[0].shard.name,
            )
            return _Loaded(family=family, problem=problem, lost=True)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error.filename}: is not there any more; mount its folder again, or put it back, then the same "
                "command continues"
            ) from error
        finally:
            forget(loader.spans(family))  # what was read ahead and not needed after all

    def _note(self, loaded: _Loaded, done: _Step) -> None:
        """Enter a family in the books of its step."""
        family, table = loaded.family, self.tables[loaded.family.source]
        done.planned[table.name] += len(family.items)
        books = done.quarantined if loaded.lost else done.seen
        books[table.name] += len(family.items)
        if loaded.lost:
            done.lost.append(table.key(family.clip))
        if loaded.problem is not None:
            done.problems.append((table.name, loaded.problem))

    def _finish(self, done: _Step) -> _Step:
        """Write down what a step that is now handed out met; the same problem counts once."""
        for source, problem in done.problems:
            self.quarantine.add(source, problem)
        return done
