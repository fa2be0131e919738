"""RolloutSource: prompts of a step -> sampled completions -> rewards -> advantages -> packed batches.

To the Runner it is a source like any other. It remembers the completions that later updates use again, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from arcvideo.feed.prompts import Prompt, StepPrompts
from arcvideo.model.special import special_ids
from arcvideo.objectives.agreement import agreeing
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.collect import Collected, collect
from arcvideo.rollout.gates import (
    check_lengths,
    check_media,
    check_reference,
    check_rewards,
    check_sampler,
    clipped_warning,
)
from arcvideo.rollout.held import HeldGroup, from_json, hold, restore_group, to_json
from arcvideo.rollout.log import RolloutLog, sample_rows
from arcvideo.rollout.measure import TIMES, Report, gap_metrics, metrics, report
from arcvideo.rollout.reference import frozen_copy
from arcvideo.rollout.rewards.loading import load_reward
from arcvideo.rollout.rows import empty_row, forward_logprobs, gains_of, pack, rows_of, rows_per_rank, weighted
from arcvideo.sampling.decode import seed_at
from arcvideo.sampling.encode import with_features
from arcvideo.sampling.groups import Group, place_of
from arcvideo.sampling.sampler import sampler_class
from arcvideo.sampling.settings import grpo_sampling
from arcvideo.tasks import TASKS
from arcvideo.types import Batch, StepData, summed


class PromptSource(Protocol):
    """Where prompts come from: `arcvideo.feed.source.Source`."""

    def prompts(self, step: int, *, count: int) -> StepPrompts:
        """Return this rank's share of the `count` prompts of a step; a pure function of the step."""
        ...


class PolicyEngine(Protocol):
    """What is needed of `arcvideo.runner.engine.Engine`."""

    model: Any

    def whole_weights(self) -> AbstractContextManager[Any]:
        """Return the model with all weights in place."""
        ...

    def precision(self) -> AbstractContextManager[None]:
        """Return the arithmetic of a training forward."""
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
        own_forward: bool = False,
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
            own_forward: the objective takes old log-probabilities from the update's own forward where it may, and
                compares them with the sampler's itself (`ObjectiveRow.own_forward`).

        Raises:
            ValueError: a reward that cannot be loaded, or an unknown task.
        """
        for name in settings.reward_names:
            load_reward(name)
        for task in (*settings.task_rewards, *settings.task_weights):
            if task not in TASKS:
                raise ValueError(f"grpo.task_rewards or task_weights names task {task!r}; there are {', '.join(TASKS)}")
        self.source, self.engine, self.settings, self.seed, self.features = source, engine, settings, seed, features
        self._sampler = sampler_class(settings.sampler)(engine.model, tokenizer=tokenizer, features=features)
        self._sampling = grpo_sampling(settings)
        self._special = special_ids(tokenizer)
        self._log = RolloutLog(log)
        self._reference = None
        if settings.beta != 0:
            with engine.whole_weights() as model:
                self._reference = frozen_copy(model)
        # Later updates of a rollout need the log-probabilities of weights that are gone by then.
        self._own_forward = own_forward and settings.num_iterations == 1
        self._rollout = -1
        self._data = StepData(batches=[])
        self._asked: list[StepPrompts] = []
        self._held: dict[str, HeldGroup] = {}
        self._resumed = False
        self._warned = False
        self._seconds: dict[str, float] = {}

    def batches(self, step: int) -> StepData:
        """Return this rank's micro-batches of optimizer step `step`; steps of one rollout give the same ones again."""
        rollout, iteration = divmod(step, self.settings.num_iterations)
        if rollout != self._rollout:
            if not self._resumed:
                self._held = {}
            self._data = self._roll_out(rollout)
            self._rollout, self._resumed = rollout, False
        return _again(self._data) if iteration else self._data

    def held(self, step: int) -> dict[str, Any]:
        """Return the completions that `batches(step)` uses again, by place of the prompt; empty before a rollout."""
        rollout, iteration = divmod(step, self.settings.num_iterations)
        if not iteration or rollout != self._rollout:
            return {}
        return {name: to_json(group) for name, group in self._held.items()}

    def take(self, held: Mapping[str, Any]) -> None:
        """Use held completions of all ranks in place of sampling; they may have been sampled by other ranks."""
        self._held = {name: from_json(row) for name, row in held.items()}
        self._resumed = bool(held)

    def _roll_out(self, rollout: int) -> StepData:
        settings = self.settings
        self._asked = []
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
            # The first rollout is looked at before anything moves: its gates name samples and compare the reference.
            own = self._own_forward and rollout > 0
            packed = [self._packed(model, drawn=drawn, rows=row, gains=gains, own=own) for row in rows]
            self._seconds["logprobs"] = time.perf_counter() - began
        batches, gaps = [batch for batch, _ in packed], [gap for _, gap in packed if gap is not None]
        self._seconds["rewards"] = drawn.seconds
        self._seconds |= {name: self._sampler.seconds[name] - before[name] for name in before}
        reported = report(drawn.groups, drawn.scores, spread=drawn.spread, seconds=self._seconds)
        if not own:
            check_sampler(batches, gaps, settings=settings)
        if rollout == 0:
            self._check(batches, reported=reported)
        batches = weighted(batches, settings=settings)
        batches += [empty_row(self._special) for _ in range(rows_per_rank(len(rows), settings=settings) - len(rows))]
        samples = sample_rows(drawn.groups, drawn.scores, gains=gains, count=settings.log_completions)
        self._log.write(samples, step=rollout * settings.num_iterations, groups=drawn.groups)
        return StepData(
            batches=batches,
            counts=summed(chunk.counts for chunk in self._asked),
            lost=tuple(key for chunk in self._asked for key in chunk.lost),
            metrics=metrics(reported) | ({} if own else gap_metrics(gaps, bound=settings.max_logprob_gap)),
            samples=samples,
            notes=self._notes(reported),
        )

    def _sampled(self, model: Any, *, chunk: int) -> list[Group]:
        """Return this rank's groups of a chunk of the prompt stream, from a checkpoint as far as it has them."""
        settings = self.settings
        self._asked.append(self.source.prompts(chunk, count=settings.num_prompts))
        prompts = self._asked[-1].prompts
        check_media(prompts, sizes=model.settings)
        began = time.perf_counter()
        prompts = with_features(prompts, model=model, features=self.features)
        self._seconds["encode"] += time.perf_counter() - began
        held = [self._known(prompt) if self._resumed else None for prompt in prompts]
        fresh = [prompt for prompt, stored in zip(prompts, held, strict=True) if stored is None]
        sampled = iter(
            self._sampler.sample(
                fresh,
                num_generations=settings.num_generations,
                settings=self._sampling,
                seeds=[seed_at(place_of(prompt), seed=self.seed) for prompt in fresh],
            )
        )
        groups = [
            next(sampled) if stored is None else restore_group(stored, prompt=prompt, tokenizer=self._sampler.tokenizer)
            for prompt, stored in zip(prompts, held, strict=True)
        ]
        if settings.num_iterations > 1:
            for group, stored in zip(groups, held, strict=True):
                self._held[_name(group.prompt)] = stored or hold(group)
        return groups

    def _known(self, prompt: Prompt) -> HeldGroup:
        """Return the completions that older weights gave to a prompt, from a checkpoint."""
        if _name(prompt) not in self._held:
            raise ValueError(
                f"the checkpoint holds no completions of prompt {place_of(prompt)} ({prompt.key}), which could not be "
                "read when its rollout began: put quarantine.jsonl of this stage back, or delete its newest checkpoint"
            )
        return self._held[_name(prompt)]

    def _gains(self, drawn: Collected) -> Tensor:
        """Return (n,) advantages of all completions; 0 for groups that are not trained on."""
        size = self.settings.num_generations
        picked = _completions(drawn.chosen, size=size)
        tasks = [drawn.groups[number].prompt.task for number in drawn.chosen for _ in range(size)]
        gains = torch.zeros(len(drawn.scores.total))
        gains[picked] = gains_of(drawn.scores.total[picked], tasks=tasks, settings=self.settings)
        return gains

    def _packed(
        self, model: Any, *, drawn: Collected, rows: list[int], gains: Tensor, own: bool
    ) -> tuple[Batch, Tensor | None]:
        """Return one packed row of some of the groups with all that the objective reads, and (T,) gaps to the sampler.

        With `own` the policy is not run: the objective makes the gaps, so there are none yet.
        """
        groups = [drawn.groups[number] for number in rows]
        picked = _completions(rows, size=self.settings.num_generations)
        batch = pack(groups, gains=gains[picked], settings=self.settings)
        sampled = torch.cat([completion.logprobs for group in groups for completion in group.completions])
        logprobs = self._logprobs(model, batch=batch, groups=groups, own=own)
        if own:
            return replace(batch, extra={**batch.extra, **logprobs, "sampled_logprobs": sampled}), None
        gap = (logprobs["old_logprobs"] - sampled).abs()
        mask = batch.extra["loss_mask"] * agreeing(gap, settings=self.settings)
        return replace(batch, extra={**batch.extra, **logprobs, "loss_mask": mask}), gap

    @torch.no_grad()
    def _logprobs(self, model: Any, *, batch: Batch, groups: Sequence[Group], own: bool) -> dict[str, Tensor]:
        """Return log-probs of the targets, each (T,): under the reference and, without `own`, the policy that
        sampled.
        """
        moved = batch.to(next(model.parameters()).device)
        temperature = self.settings.temperature
        logprobs = {} if own else {"old_logprobs": self._old(model, batch=moved, groups=groups)}
        if self._reference is not None:
            logprobs["ref_logprobs"] = forward_logprobs(self._reference, moved, temperature=temperature)
        return logprobs

    def _old(self, model: Any, *, batch: Batch, groups: Sequence[Group]) -> Tensor:
        """Return (T,) log-probs under the policy that sampled, from a checkpoint where it has them."""
        names = [_name(group.prompt) for group in groups]
        stored = [self._held[name].old for name in names] if self._resumed else []
        if stored and all(stored):
            old = torch.cat([part for group in stored for part in group])
        else:
            old = forward_logprobs(model, batch, temperature=self.settings.temperature)
        if self.settings.num_iterations > 1:
            self._remember(names, groups, old=old)
        return old

    def _remember(self, names: Sequence[str], groups: Sequence[Group], *, old: Tensor) -> None:
        """Keep the old log-probs of each group for a checkpoint."""
        lengths = [[completion.ids.numel() for completion in group.completions] for group in groups]
        for name, own, part in zip(names, lengths, old.split([sum(own) for own in lengths]), strict=True):
            self._held[name] = replace(self._held[name], old=part.split(own))

    def _check(self, batches: Sequence[Batch], *, reported: Report) -> None:
        """Refuse to begin with numbers that do not belong together, or from which nothing can be learned."""
        if self._reference is not None:
            check_reference(batches)
        if self.settings.mask_truncated_completions:
            check_lengths(reported, longest=self.settings.max_completion_length)
        if self.settings.require_reward_spread:
            check_rewards(reported)

    def _notes(self, reported: Report) -> tuple[str, ...]:
        """Return what a person is told, once a run."""
        warning = None if self._warned else clipped_warning(reported, settings=self.settings)
        self._warned = self._warned or warning is not None
        return (f"warning: {warning}",) if warning else ()


def _name(prompt: Prompt) -> str:
    """Return the name of a prompt's held group in a checkpoint."""
    return str(place_of(prompt))


def _completions(groups: Sequence[int], *, size: int) -> Tensor:
    """Return (k * size,) int64 numbers of the completions of some groups."""
    return (torch.tensor(groups, dtype=torch.int64)[:, None] * size + torch.arange(size)).flatten()


def _again(data: StepData) -> StepData:
    """Return a later update with the same completions: nothing was asked, sampled or shown for it."""
    figures = {name: value for name, value in data.metrics.items() if not name.startswith(TIMES)}
    return StepData(batches=data.batches, metrics=figures)
