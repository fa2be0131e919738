"""Held-out questions of a stage: read as the stage reads its own clips, shared among ranks, answered into a folder.

Asking, answers, journal and figures are those of `arcvideo evaluate`. What is its own: clips are read by the stage's
source, with its budget of frames, caches, tower outputs and quarantine, so that a model is measured on what it trains
on; `arcvideo evaluate` reads any files, in up to six arms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from arcvideo.evaluation.evaluate import ask_all
from arcvideo.evaluation.figures import arms_of, check_chosen, choose
from arcvideo.evaluation.settings import EvaluationSettings
from arcvideo.feed.source import Source
from arcvideo.layout import MediaLayout
from arcvideo.measuring.folder import Journal, Lost, asked_before
from arcvideo.measuring.scores import score_folder
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.processes.ranks import World, barrier, gather_json
from arcvideo.progress import counted
from arcvideo.sampling.sampler import InProcessSampler

Figures = dict[str, dict[str, float]]
QUARANTINE = "quarantine-held-out.jsonl"


def held_out_data(data: DataSettings, *, settings: EvaluationSettings, packs: int) -> DataSettings:
    """Return the settings that read the held-out clips: the stage's own, but for what is read.

    Args:
        data: of the stage.
        settings: of its evaluation.
        packs: of a step.
    """
    source = SourceSettings(shards=settings.held_out, style=settings.style, items_per_clip=0)
    return replace(data, sources={"held_out": source}, packs_per_step=packs)


class HeldOut:
    """The held-out questions of a stage; their clips are read when they are asked."""

    def __init__(
        self,
        data: DataSettings,
        *,
        settings: EvaluationSettings,
        layout: MediaLayout,
        tokenizer: Any,
        features: Any,
        world: World,
        seed: int,
        folder: Path,
    ) -> None:
        """Open the indexes and choose the questions.

        Args:
            data: of the stage.
            settings: of its evaluation.
            layout: shapes that the model reads.
            tokenizer: of the model.
            features: a `FeatureStore` of tower outputs, or None.
            world: the ranks that share the clips.
            seed: of the run.
            folder: of the stage.

        Raises:
            ValueError: shards that cannot be read, or questions that no metric can score.
        """
        self.settings, self.world, self.tokenizer, self.features = settings, world, tokenizer, features
        self.source = Source(
            held_out_data(data, settings=settings, packs=world.size),
            layout=layout,
            tokenizer=tokenizer,
            seed=seed,
            rank=world.rank,
            world=world.size,
            features=features,
            quarantine_file=folder / QUARANTINE,
            supervised=False,
            progress=world.first,
        )
        questions = self.source.questions()
        self.chosen = choose(questions, settings=settings)
        """Metric -> keys of the questions that it is measured on."""
        self._numbers = {question.key: number for number, question in enumerate(questions)}
        try:
            check_chosen(self.chosen, questions=questions, settings=settings)
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
        sampler = InProcessSampler(model, tokenizer=self.tokenizer, features=self.features)
        prompts = self.source.evaluation(only=left)
        asked = ask_all(prompts, sampler=sampler, wanted=wanted, numbers=self._numbers, settings=self.settings)
        total = sum(map(len, wanted.values())) if self.world.size == 1 else None
        with (
            Journal(folder, rank=self.world.rank) as journal,
            counted(what="held-out answers", total=total, unit="answer", quiet=not self.world.first) as advance,
        ):
            for answers in asked:
                journal.add(answers)
                advance(len(answers))
                note("answering held-out questions")

    def _note_lost(self, asked: set[str], *, folder: Path) -> None:
        """Write down the questions whose clips could not be read."""
        answered, lost = asked_before(folder)
        missing = sorted(asked - {key for _, key in answered} - lost, key=self._numbers.__getitem__)
        if missing:
            with Journal(folder, rank=0) as journal:
                detail = f"its clip could not be read; {QUARANTINE} of the stage says why"
                journal.lose(Lost(key=key, reason="unreadable", detail=detail) for key in missing)

    def close(self) -> None:
        """Stop the threads and processes that read."""
        self.source.close()
