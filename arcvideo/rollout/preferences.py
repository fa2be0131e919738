"""ReferenceSource: batches of answer pairs with their log-probabilities under the parent, for `objectives.dpo`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch

from arcvideo.rollout.reference import frozen_copy
from arcvideo.rollout.rows import forward_logprobs
from arcvideo.rollout.source import PolicyEngine
from arcvideo.sampling.encode import encoded
from arcvideo.types import Batch, StepData


class PairSource(Protocol):
    """Where pairs come from: `arcvideo.feed.source.Source` opened with pairs=True."""

    def batches(self, step: int) -> StepData:
        """Return this rank's packed rows of a global step."""
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

    def batches(self, step: int) -> StepData:
        """Return this rank's packed rows of a global step, with `extra["ref_logprobs"]` (T,)."""
        data = self.source.batches(step)
        with self.engine.whole_weights() as model, self.engine.precision(), torch.no_grad():
            return replace(data, batches=[self._with_reference(model, batch) for batch in data.batches])

    def _with_reference(self, model: Any, batch: Batch) -> Batch:
        batch = replace(batch, media=tuple(encoded(batch.media, model=model, features=self.features)))
        moved = batch.to(next(model.parameters()).device)
        logprobs = forward_logprobs(self._reference, moved, temperature=1.0)
        return replace(batch, extra={**batch.extra, "ref_logprobs": logprobs})
