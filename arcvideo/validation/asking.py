"""Held-out questions of a stage: read as the stage reads its own clips, shared among ranks, answered into a folder.

Asking, answers, journal and figures are those of `arcvideo evaluate`. What is its own: clips are read by the stage's
source, with its budget of frames, caches, tower outputs and quarantine, so that a model is measured on what it trains
on; `arcvideo evaluate` reads any files, in up to six arms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arcvideo.composing.config import RunConfig
from arcvideo.evaluation.evaluate import ask_all
from arcvideo.evaluation.figures import arms_of, check_chosen, choose
from arcvideo.feed.source import Source
from arcvideo.measuring.folder import Journal, Lost, asked_before
from arcvideo.measuring.scores import score_folder
from arcvideo.planning.settings import SourceSettings
from arcvideo.processes.ranks import World, barrier, gather_json
from arcvideo.progress import counted
from arcvideo.sampling.sampler import InProcessSampler

Figures = dict[str, dict[str, float]]
QUARANTINE = "quarantine-held-out.jsonl"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the held-out clips of a stage are read: as its own, but for what is read."""

    config: RunConfig
    world: World
    """The ranks that share the clips."""
    tokenizer: Any
    """Of the model."""
    features: Any
    """A `FeatureStore` of tower outputs, or None."""

    def source(self, *, packs: int, **how: Any) -> Source:
        """Open the indexes.

        Args:
            packs: of a step.
            how: further arguments of `Source`.

        Raises:
            ValueError: shards that cannot be read.
        """
        settings = self.config.evaluation
        held_out = SourceSettings(shards=settings.held_out, style=settings.style, items_per_clip=0)
        return Source(
            replace(self.config.data, sources={"held_out": held_out}, packs_per_step=packs),
            layout=self.config.layout,
            tokenizer=self.tokenizer,
            seed=self.config.runner.seed,
            features=self.features,
            quarantine_file=self.config.stage_dir / QUARANTINE,
            **how,
        )


class HeldOut:
    """The held-out questions of a stage; their clips are read when they are asked."""

    def __init__(self, reading: Reading) -> None:
        """Open the indexes and choose the questions.

        Raises:
            ValueError: shards that cannot be read, or questions that no metric can score.
        """
        world = reading.world
        self.reading, self.world, self.settings = reading, world, reading.config.evaluation
        self.source = reading.source(
            packs=world.size, rank=world.rank, world=world.size, supervised=False, progress=world.first
        )
        questions = self.source.questions()
        self.chosen = choose(questions, settings=self.settings)
        """Metric -> keys of the questions that it is measured on."""
        self._numbers = {question.key: number for number, question in enumerate(questions)}
        try:
            check_chosen(self.chosen, questions=questions, settings=self.settings)
        except ValueError:
            self.close()
            raise

    @property
    def scoring(self) -> dict[str, Any]:
        """What the card of a measurement says of how its answers are scored."""
        return {
            "metrics": list(self.chosen),
            "bootstrap": self.settings.bootstrap,
            "seed": self.settings.seed,
            "chosen": self.chosen,
        }

    def measure(self, model: Any, *, folder: Path, note: Callable[[str], None] = lambda text: None) -> Figures:
        """Ask what is not answered in `folder` yet and score all of it; return the figures, on every rank.

        Args:
            model: an `ArcVideoForConditionalGeneration`, whole, on its device.
            folder: of the measurement, with its card; every rank keeps a journal in it.
            note: is told of every batch of answers, so that a watchdog knows that something happens.

        Raises:
            ValueError: nothing could be asked.
        """
        answered, lost = asked_before(folder)
        barrier(world=self.world)  # nobody writes before all have read: what is left is shared among the ranks
        wanted = {
            arm: {key: None for key in keys if key not in lost and (arm, key) not in answered}
            for arm, keys in arms_of(self.chosen).items()
        }
        if left := {key for keys in wanted.values() for key in keys}:
            self._ask(model, wanted=wanted, left=left, folder=folder, note=note)
        barrier(world=self.world)
        figures: Figures = {}
        if self.world.first:
            self._note_lost(left, folder=folder)
            figures = score_folder(folder, bootstrap=self.settings.bootstrap, seed=self.settings.seed)["metrics"]
        return dict(gather_json(figures, world=self.world)[0])

    def _ask(
        self,
        model: Any,
        *,
        wanted: Mapping[str, Mapping[str, None]],
        left: set[str],
        folder: Path,
        note: Callable[[str], None],
    ) -> None:
        """Ask this rank's share."""
        sampler = InProcessSampler(model, tokenizer=self.reading.tokenizer, features=self.reading.features)
        prompts = self.source.evaluation(only=left)
        batches = ask_all(prompts, sampler=sampler, wanted=wanted, numbers=self._numbers, settings=self.settings)
        total = sum(map(len, wanted.values())) if self.world.size == 1 else None
        with (
            Journal(folder, rank=self.world.rank) as journal,
            counted(what="held-out answers", total=total, unit="answer", quiet=not self.world.first) as advance,
        ):
            for answers in batches:
                journal.add(answers)
                advance(len(answers))
                note("answering held-out questions")

    def _note_lost(self, keys: set[str], *, folder: Path) -> None:
        """Write down the questions whose clips could not be read."""
        answered, lost = asked_before(folder)
        missing = sorted(keys - {key for _, key in answered} - lost, key=self._numbers.__getitem__)
        if missing:
            with Journal(folder, rank=0) as journal:
                detail = f"its clip could not be read; {QUARANTINE} of the stage says why"
                journal.lose(Lost(key=key, reason="unreadable", detail=detail) for key in missing)

    def close(self) -> None:
        """Stop the threads and processes that read."""
        self.source.close()
