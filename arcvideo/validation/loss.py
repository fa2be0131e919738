"""The loss on held-out answers, the same packed rows each time, to the digit whatever the number of ranks."""

from __future__ import annotations

import math
from typing import Any

import torch

from arcvideo.objectives.scores import forward_of, loss_of
from arcvideo.processes.ranks import gather_json
from arcvideo.runner.protocols import Objective
from arcvideo.validation.asking import Reading


class HeldOutLoss:
    """The mean loss over the targets of some packed rows of held-out clips."""

    def __init__(self, reading: Reading, *, objective: Objective) -> None:
        """Open the indexes and plan the rows.

        Args:
            reading: of the held-out clips, whose ranks share the rows.
            objective: of the stage.

        Raises:
            ValueError: no held-out answer can be trained on.
        """
        self.world, self.features, self.objective = reading.world, reading.features, objective
        try:
            # As if alone: with several rows a step, rows would be chosen to take equally long.
            self.source = reading.source(packs=1)
        except ValueError as error:
            raise ValueError(f"{error}; evaluation.loss_packs=0 leaves the held-out loss out") from error
        self.packs = min(reading.config.evaluation.loss_packs, self.source.steps_per_epoch)

    @torch.no_grad()
    def of(self, model: Any) -> float:
        """Return the loss of a model that is whole on its device; nan when no row has a target that could be read."""
        rank, ranks = self.world.rank, self.world.size
        totals: list[float] = []
        weights: list[float] = []
        device = next(model.parameters()).device
        for pack in range(self.packs * rank // ranks, self.packs * (rank + 1) // ranks):
            for batch in self.source.batches(pack).batches:
                weight = float(batch.target_weights.double().sum())
                if weight:
                    moved = batch.to(device)
                    loss = loss_of(self.objective, moved, run=forward_of(model, features=self.features))
                    totals.append(float(loss.total))
                    weights.append(weight)
        parts = gather_json([totals, weights], world=self.world)
        # A sum that does not depend on the order does not depend on the ranks.
        total, weight = (math.fsum(value for part in parts for value in part[kind]) for kind in (0, 1))
        return total / weight if weight else math.nan

    def close(self) -> None:
        """Stop the threads and processes that read."""
        self.source.close()
