"""Everything held out of a stage, opened before its first step, so that what cannot be measured is told then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcvideo.composing.config import RunConfig
from arcvideo.processes.ranks import World
from arcvideo.runner.protocols import Objective
from arcvideo.validation.asking import HeldOut, Reading
from arcvideo.validation.during import HeldOutCourse, PolicyEngine
from arcvideo.validation.loss import HeldOutLoss


@dataclass(frozen=True, kw_only=True)
class Held:
    """What is held out of a stage."""

    questions: HeldOut | None
    """None when nothing is asked."""
    loss: HeldOutLoss | None
    """None when no loss is measured during training."""

    def course(
        self, config: RunConfig, *, engine: PolicyEngine, world: World, folder: Path, identity: str
    ) -> HeldOutCourse | None:
        """Return what measures during the run; None without `evaluation.every`.

        Raises:
            ValueError: the figure that chooses the weights has no held-out item.
        """
        if not config.evaluation.every:
            return None
        return HeldOutCourse(
            config.evaluation,
            engine=engine,
            world=world,
            held=self.questions,
            loss=self.loss,
            folder=folder,
            identity=identity,
        )

    def close(self) -> None:
        """Stop the threads and processes that read."""
        for part in (self.questions, self.loss):
            if part is not None:
                part.close()


def open_held(config: RunConfig, *, world: World, tokenizer: Any, features: Any, objective: Objective) -> Held:
    """Open what a stage holds out, as far as anything is measured on it.

    Args:
        config: of the stage.
        world: the ranks that share the clips.
        tokenizer: of the model.
        features: a `FeatureStore` of tower outputs, or None.
        objective: of the stage.

    Raises:
        ValueError: shards that cannot be read, questions that no metric can score, or no answer to train on.
    """
    settings = config.evaluation
    reading = Reading(config=config, world=world, tokenizer=tokenizer, features=features)
    wanted = settings.every and settings.loss_packs and config.objective.feed == "answers"
    loss = HeldOutLoss(reading, objective=objective) if wanted else None
    return Held(questions=HeldOut(reading) if settings.measures else None, loss=loss)
