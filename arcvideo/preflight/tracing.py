"""Memory of a stage with what traces of its real step count in place of formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arcvideo.composing.config import RunConfig
from arcvideo.preflight.memory import Memory, gathered
from arcvideo.preflight.row import Row
from arcvideo.preflight.trace import Traced, trace_row
from arcvideo.preflight.trace_rollout import TracedRollout, trace_rollout


class Tracing:
    """Traces of stages; those that differ in data or schedule alone share theirs."""

    def __init__(self) -> None:
        self._rows: dict[str, Traced] = {}
        self._rollouts: dict[str, TracedRollout] = {}

    def memory(self, formula: Memory, *, config: RunConfig, row: Row, ranks: int) -> Memory:
        """Return the memory with activations and, of a stage that samples, the rollout as they are traced.

        Args:
            formula: the stage's memory; weights, gradients, optimizer and buffers stay as they are.
            config: of the stage.
            row: the packed row that holds most.
            ranks: devices that share the prompts of a rollout.
        """
        stage, options = config.stage, (config.runner.precision, config.feature_cache)
        kind: tuple[Any, ...] = (row, config.model, config.lora, sorted(stage.train), stage.objective, options)
        named = repr((*kind, stage.options, config.objective_settings))
        if named not in self._rows:
            self._rows[named] = trace_row(config, row=row)
        found = replace(formula, activations=float(self._rows[named].peak))
        if not config.objective.sampled:
            return found
        prompts = -(-config.grpo.num_prompts // ranks)
        named = repr((*kind, prompts, config.grpo))
        if named not in self._rollouts:
            self._rollouts[named] = trace_rollout(config, row=row, prompts=prompts)
        rollout = self._rollouts[named]
        above = gathered(config) + rollout.peak - rollout.features
        return replace(found, rollout=above, features=float(rollout.features))
