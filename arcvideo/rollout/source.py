"""RolloutSource: prompts of a step -> sampled completions -> rewards -> advantages -> packed batches.

To the Runner it is a source like any other. Everything it measures travels in `Batch.extra`, so that the objective
reports it and the loop needs to know nothing about rollouts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from arcvideo.feed.prompts import Prompt
from arcvideo.model.special import special_ids
from arcvideo.objectives.grpo import METRIC
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.collect import Collected, collect
from arcvideo.rollout.draw import seed_at
from arcvideo.rollout.encode import with_features
from arcvideo.rollout.gates import (
    check_lengths,
    check_media,
    check_reference,
    check_rewards,
    check_sampler,
    clipped_warning,
)
from arcvideo.rollout.groups import Group, place_of
from arcvideo.rollout.held import HeldGroup, from_json, hold, restore_group, to_json
from arcvideo.rollout.log import RolloutLog, sample_rows
from arcvideo.rollout.measure import TIMES, gathered, metrics, report
from arcvideo.rollout.reference import frozen_copy
from arcvideo.rollout.rewards.loading import load_reward
from arcvideo.rollout.rows import empty_row, forward_logprobs, gains_of, pack, rows_of, rows_per_rank, weighted
from arcvideo.rollout.sampler import InProcessSampler
from arcvideo.rollout.settings import grpo_sampling
from arcvideo.tasks import TASKS
from arcvideo.types import Batch

Counts = dict[str, dict[str, Any]]
"""Kind (planned, seen, quarantined) -> data source -> items; `held` -> prompt -> its completions."""
HELD = "held"
"""Kind of the state under which completions lie that later updates still need."""
SAMPLER_GAP = f"{METRIC}rollout/logprob_gap"
"""Entry of `Batch.extra`: (T,) |log-prob of the sampler - log-prob of the trainer|."""


class PromptSource(Protocol):
    """Where prompts come from: `arcvideo.feed.source.Source`."""

    def prompts(self, step: int, *, count: int) -> Sequence[Prompt]:
        """This rank's share of the `count` prompts of a step, each with its place; a pure function of the step."""
        ...

    def state(self) -> Counts:
        """Items that this rank was handed so far; JSON-able."""
        ...

    def restore(self, state: Counts) -> None:
        """Continue counting from there."""
        ...


class PolicyEngine(Protocol):
    """What is needed of `arcvideo.runner.engine.Engine`."""

    model: Any

    def whole_weights(self) -> AbstractContextManager[Any]:
        """The model with all weights in place."""
        ...

    def precision(self) -> AbstractContextManager[None]:
        """The arithmetic of a training forward."""
        ...


class RolloutSource:
    """Batches of completions sampled from the policy as it is when they are asked for."""

    def __init__(
        self,
        source: PromptSource,
        *,
        engine: PolicyEngine,
        tokenizer: Any,
        settings: GrpoSettings,
        seed: int = 0,
        features: Any = None,
        log: Path | None = None,
    ) -> None:
        """Make the reference from the engine's present weights, so before a checkpoint is loaded into it.

        Args:
            source: gives prompts.
            engine: holds the policy.
            tokenizer: of the policy.
            settings: the GRPO stage.
            seed: of the sampling noise.
            features: a `FeatureStore` of tower outputs, or None.
            log: receives sample rollouts as JSONL; None on ranks that do not write.

        Raises:
            ValueError: a reward that cannot be loaded, or an unknown task.
        """
        for name in settings.reward_names:
            load_reward(name)
        for task in (*settings.task_rewards, *settings.task_weights):
            if task not in TASKS:
                raise ValueError(f"grpo.task_rewards or task_weights names task {task!r}; there are {', '.join(TASKS)}")
        self.source, self.engine, self.settings, self.seed, self.features = source, engine, settings, seed, features
        self._sampler = InProcessSampler(engine.model, tokenizer=tokenizer, features=features)
        self._sampling = grpo_sampling(settings)
        self._special = special_ids(tokenizer)
        self._log = RolloutLog(log)
        self._reference = None
        if settings.beta != 0:
            with engine.whole_weights() as model:
                self._reference = frozen_copy(model)
        self._rollout, self._next = -1, 0
        self._warned = False
        self._before: Counts = {}
        self._batches: list[Batch] = []
        self._held: dict[str, HeldGroup] = {}
        self._resumed = False
        self._rows: list[dict[str, Any]] = []
        self._seconds: dict[str, float] = {}

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `step`; steps of one rollout give the same batches again."""
        rollout, iteration = divmod(step, self.settings.num_iterations)
        if rollout != self._rollout:
            self._before = self.source.state()
            if not self._resumed:
                self._held = {}
            self._batches = self._roll_out(rollout)
            if self._resumed:  # these prompts were counted before the checkpoint
                self.source.restore(self._before)
            self._rollout, self._resumed = rollout, False
        self._next = step + 1
        return [_without_times(batch) for batch in self._batches] if iteration else self._batches

    def samples(self, step: int) -> list[dict[str, Any]]:
        """What `rollouts.jsonl` says of this step, for a table elsewhere; nothing where the completions are reused."""
        return [] if step % self.settings.num_iterations else self._rows

    def state(self) -> Counts:
        """Counts of the prompts' source and, between two updates of one rollout, its completions; JSON-able."""
        counts: Counts = dict(self.source.state())
        if self._next % self.settings.num_iterations and self._held:
            counts[HELD] = {key: to_json(group) for key, group in self._held.items()}
        return counts

    def restore(self, state: Counts) -> None:
        """Continue; all ranks together. A held rollout that began from `state` will be handed out, so it stays counted.

        Completions in `state` are used in place of sampling; they may have been sampled by other ranks.
        """
        counts = {kind: value for kind, value in state.items() if kind != HELD}
        found: Mapping[str, Any] = {}
        if self.settings.num_iterations > 1:
            found = {key: row for part in gathered(state.get(HELD, {})) for key, row in part.items()}
        if found:
            self._held = {key: from_json(row) for key, row in found.items()}
            self._resumed = True
        if self._rollout < 0 or counts != self._before:
            self.source.restore(counts)

    def _roll_out(self, rollout: int) -> list[Batch]:
        settings = self.settings
        self._seconds = dict.fromkeys(("encode", "prefill", "decode", "rewards", "logprobs"), 0.0)
        before = dict(self._sampler.seconds)
        with self.engine.whole_weights() as model, self.engine.precision():
            drawn = collect(
                lambda chunk: self._sampled(model, chunk=chunk),
                rollout=rollout,
                settings=settings,
                clock=time.perf_counter,
            )
            gains = self._gains(drawn)
            rows = rows_of(drawn.chosen, spread=drawn.spread, settings=settings)
            began = time.perf_counter()
            batches = [self._batch(model, drawn=drawn, rows=row, gains=gains) for row in rows]
            self._seconds["logprobs"] = time.perf_counter() - began
        self._seconds["rewards"] = drawn.seconds
        self._seconds |= {name: self._sampler.seconds[name] - before[name] for name in before}
        found = report(drawn.groups, drawn.scores, spread=drawn.spread, seconds=self._seconds)
        self._check(batches, first=rollout == 0)
        if rollout == 0 and settings.mask_truncated_completions:
            check_lengths(found, longest=settings.max_completion_length)
        if rollout == 0 and settings.require_reward_spread:
            check_rewards(found)
        self._warn(clipped_warning(found, settings=settings))
        told = metrics(found)
        batches = [replace(batch, extra={**batch.extra, **told}) for batch in weighted(batches, settings=settings)]
        batches += [empty_row(self._special) for _ in range(rows_per_rank(len(rows), settings=settings) - len(rows))]
        self._rows = sample_rows(drawn.groups, drawn.scores, gains=gains, count=settings.log_completions)
        self._log.write(self._rows, step=rollout * settings.num_iterations, groups=drawn.groups)
        return batches

    def _sampled(self, model: Any, *, chunk: int) -> list[Group]:
        """This rank's groups of a chunk of the prompt stream, from a checkpoint as far as it has them."""
        settings = self.settings
        prompts = list(self.source.prompts(chunk, count=settings.num_prompts))
        check_media(prompts, tokens_per_frame=model.settings.tokens_per_frame)
        began = time.perf_counter()
        prompts = with_features(prompts, model=model, features=self.features)
        self._seconds["encode"] += time.perf_counter() - began
        held = [self._known(prompt) if self._resumed else None for prompt in prompts]
        fresh = [prompt for prompt, known in zip(prompts, held, strict=True) if known is None]
        sampled = iter(
            self._sampler.sample(
                fresh,
                num_generations=settings.num_generations,
                settings=self._sampling,
                seeds=[seed_at(place_of(prompt), seed=self.seed) for prompt in fresh],
            )
        )
        groups = [
            next(sampled) if known is None else restore_group(known, prompt=prompt, tokenizer=self._sampler.tokenizer)
            for prompt, known in zip(prompts, held, strict=True)
        ]
        if settings.num_iterations > 1:
            for group, known in zip(groups, held, strict=True):
                self._held[_name(group.prompt)] = known or hold(group)
        return groups

    def _known(self, prompt: Prompt) -> HeldGroup:
        """The completions that older weights gave to a prompt, from a checkpoint."""
        if _name(prompt) not in self._held:
            raise ValueError(
                f"the checkpoint holds no completions of prompt {place_of(prompt)} ({prompt.key}), which could not be "
                "read when its rollout began: put quarantine.jsonl of this stage back, or delete its newest checkpoint"
            )
        return self._held[_name(prompt)]

    def _gains(self, drawn: Collected) -> Tensor:
        """(n,) advantages of all completions; 0 for groups that are not trained on."""
        size = self.settings.num_generations
        picked = _completions(drawn.chosen, size=size)
        tasks = [drawn.groups[number].prompt.task for number in drawn.chosen for _ in range(size)]
        gains = torch.zeros(len(drawn.scores.total))
        gains[picked] = gains_of(drawn.scores.total[picked], tasks=tasks, settings=self.settings)
        return gains

    def _batch(self, model: Any, *, drawn: Collected, rows: list[int], gains: Tensor) -> Batch:
        """One packed row of some of the groups, with everything the objective reads."""
        groups = [drawn.groups[number] for number in rows]
        picked = _completions(rows, size=self.settings.num_generations)
        batch = pack(groups, gains=gains[picked], settings=self.settings)
        names = [_name(group.prompt) for group in groups]
        return replace(batch, extra={**batch.extra, **self._logprobs(model, batch=batch, groups=groups, names=names)})

    @torch.no_grad()
    def _logprobs(
        self, model: Any, *, batch: Batch, groups: Sequence[Group], names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Log-probs of the targets under policy and reference, and how far the sampler's were off, each (T,)."""
        moved = batch.to(next(model.parameters()).device)
        temperature = self.settings.temperature
        known = [self._held[name].old for name in names] if self._resumed else []
        if known and all(known):
            old = torch.cat([part for group in known for part in group])
        else:
            old = forward_logprobs(model, moved, temperature=temperature)
        if self.settings.num_iterations > 1:
            self._remember(names, groups, old=old)
        sampled = torch.cat([completion.logprobs for group in groups for completion in group.completions])
        found = {"old_logprobs": old, SAMPLER_GAP: (old - sampled).abs()}
        if self._reference is not None:
            found["ref_logprobs"] = forward_logprobs(self._reference, moved, temperature=temperature)
        return found

    def _remember(self, names: Sequence[str], groups: Sequence[Group], *, old: Tensor) -> None:
        """Keep the old log-probs of each group for a checkpoint."""
        lengths = [[completion.ids.numel() for completion in group.completions] for group in groups]
        for name, own, part in zip(names, lengths, old.split([sum(own) for own in lengths]), strict=True):
            self._held[name] = replace(self._held[name], old=part.split(own))

    def _warn(self, text: str | None) -> None:
        """Say it to a person, once a run; ranks other than the first write it to their own logs."""
        if text is not None and not self._warned:
            print(f"warning: {text}", file=sys.stderr, flush=True)
            self._warned = True

    def _check(self, batches: Sequence[Batch], *, first: bool) -> None:
        """Refuse to train on numbers that do not belong together."""
        check_sampler(batches, gap=SAMPLER_GAP, bound=self.settings.max_logprob_gap)
        if self._reference is not None and first:
            check_reference(batches)


def _name(prompt: Prompt) -> str:
    """Return the name of a prompt's held group in a checkpoint."""
    return str(place_of(prompt))


def _completions(groups: Sequence[int], *, size: int) -> Tensor:
    """(k * size,) int64 numbers of the completions of some groups."""
    return (torch.tensor(groups, dtype=torch.int64)[:, None] * size + torch.arange(size)).flatten()


def _without_times(batch: Batch) -> Batch:
    """The batch of a later update: no rollout was made for it."""
    kept = {name: value for name, value in batch.extra.items() if not name.startswith(TIMES)}
    return replace(batch, extra=kept)
