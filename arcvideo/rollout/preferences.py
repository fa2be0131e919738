"""ReferenceSource: batches of answer pairs with their log-probabilities under the parent, for `objectives.dpo`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch

from arcvideo.rollout.encode import encoded
from arcvideo.rollout.reference import frozen_copy
from arcvideo.rollout.rows import forward_logprobs
from arcvideo.rollout.source import Counts, PolicyEngine
from arcvideo.types import Batch


class PairSource(Protocol):
    """Where pairs come from: `arcvideo.feed.source.Source` opened with pairs=True."""

    def batches(self, step: int) -> list[Batch]:
        """This rank's packed rows of a global step."""
        ...

    def state(self) -> Counts:
        """Items that this rank was handed so far; JSON-able."""
        ...

    def restore(self, state: Counts) -> None:
        """Continue counting from there."""
        ...


class ReferenceSource:
    """The batches of another source; clips are encoded once for reference and policy."""

    def __init__(self, source: PairSource, *, engine: PolicyEngine, features: Any = None) -> None:
        """Make the reference from the engine's present weights, so before a checkpoint is loaded into it.

        Args:
            source: gives pairs.
            engine: holds the policy.
            features: a `FeatureStore` of tower outputs, or None.
        """
        self.source, self.engine, self.features = source, engine, features
        with engine.whole_weights() as model:
            self._reference = frozen_copy(model)

    def batches(self, step: int) -> list[Batch]:
        """This rank's packed rows of a global step, with `extra["ref_logprobs"]` (T,)."""
        batches = self.source.batches(step)
        with self.engine.whole_weights() as model, self.engine.precision(), torch.no_grad():
            return [self._with_reference(model, batch) for batch in batches]

    def state(self) -> Counts:
        """Counts of the source, for a checkpoint."""
        return self.source.state()

    def restore(self, state: Counts) -> None:
        """Continue the counts."""
        self.source.restore(state)

    def _with_reference(self, model: Any, batch: Batch) -> Batch:
        batch = replace(batch, media=tuple(encoded(batch.media, model=model, features=self.features)))
        moved = batch.to(next(model.parameters()).device)
        logprobs = forward_logprobs(self._reference, moved, temperature=1.0)
        return replace(batch, extra={**batch.extra, "ref_logprobs": logprobs})
