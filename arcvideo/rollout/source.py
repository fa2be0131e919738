"""RolloutSource: prompts of a step -> sampled completions -> rewards -> advantages -> packed batches.

To the Runner it is a source like any other. Everything it measures travels in `Batch.extra`, so that the objective
reports it and the loop needs to know nothing about rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from arcvideo.data.collate import collate, collate_groups
from arcvideo.data.prompts import Prompt
from arcvideo.model.special import SpecialIds, special_ids
from arcvideo.objectives.grpo import METRIC, advantages, completion_weights, group_std, token_logprobs
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.encode import with_features
from arcvideo.rollout.groups import Group
from arcvideo.rollout.log import RolloutLog
from arcvideo.rollout.reference import frozen_copy
from arcvideo.rollout.rewards.loading import load_reward
from arcvideo.rollout.rewards.score import Scores, score
from arcvideo.rollout.sampler import InProcessSampler
from arcvideo.rollout.settings import grpo_sampling
from arcvideo.tasks import TASKS
from arcvideo.types import Batch

Counts = dict[str, dict[str, int]]
"""Kind (planned, seen, quarantined) -> data source -> items."""
SAMPLER_GAP = f"{METRIC}rollout/logprob_gap"
"""Entry of `Batch.extra`: (T,) |log-prob of the sampler - log-prob of the trainer|."""
ZERO_STD = 1e-6
"""A group whose rewards spread less than this teaches nothing."""
REFERENCE_GAP = 1e-3
"""Largest difference in nats between policy and reference before the first update; they are the same weights."""


class PromptSource(Protocol):
    """Where prompts come from: `arcvideo.data.source.Source`."""

    def prompts(self, step: int, *, count: int) -> Sequence[Prompt]:
        """This rank's share of the `count` prompts of a step; a pure function of the step."""
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
        self._log = RolloutLog(log, count=settings.log_completions)
        self._reference = None
        if settings.beta != 0:
            with engine.whole_weights() as model:
                self._reference = frozen_copy(model)
        self._rollout = -1
        self._before: Counts = {}
        self._batches: list[Batch] = []

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `step`; steps of one rollout give the same batches again.

        TODO: after a resume in the middle of num_iterations > 1 the completions are sampled again, from newer weights.
        """
        rollout = step // self.settings.num_iterations
        if rollout != self._rollout:
            self._before = self.source.state()
            self._batches, self._rollout = self._roll_out(rollout), rollout
        return self._batches

    def state(self) -> Counts:
        """Counts of the prompts' source, for a checkpoint."""
        return self.source.state()

    def restore(self, state: Counts) -> None:
        """Continue the counts; a held rollout that began from `state` will be handed out, so it stays counted."""
        if self._rollout < 0 or state != self._before:
            self.source.restore(state)

    def _roll_out(self, rollout: int) -> list[Batch]:
        settings = self.settings
        prompts = list(self.source.prompts(rollout, count=settings.num_prompts))
        with self.engine.whole_weights() as model, self.engine.precision():
            prompts = with_features(prompts, model=model, features=self.features)
            seeds = [self.seed * 1_000_003 + rollout] * len(prompts)
            groups = self._sampler.sample(
                prompts, num_generations=settings.num_generations, settings=self._sampling, seeds=seeds
            )
            scores = score(groups, settings=settings)
            owner = torch.arange(len(groups)).repeat_interleave(settings.num_generations)
            gains = _advantages(scores.total, settings=settings)
            gains *= torch.tensor([settings.task_weights.get(group.prompt.task, 1.0) for group in groups])[owner]
            spread = group_std(scores.total, groups=owner)
            batches = [
                self._batch(model, groups=groups, rows=row, scores=scores, gains=gains, spread=spread)
                for row in _rows(spread, settings=settings)
            ]
        self._check(batches, rollout=rollout)
        batches += [_empty_batch(self._special) for _ in range(_rows_per_rank(settings) - len(batches))]
        self._log.write(step=rollout * settings.num_iterations, groups=groups, scores=scores, advantages=gains)
        return batches

    def _batch(
        self, model: Any, *, groups: list[Group], rows: list[int], scores: Scores, gains: Tensor, spread: Tensor
    ) -> Batch:
        """One packed row of some of the groups, with everything the objective reads."""
        settings = self.settings
        chosen = [groups[row] for row in rows]
        picked = torch.cat([torch.arange(settings.num_generations) + row * settings.num_generations for row in rows])
        completions = [completion for group in chosen for completion in group.completions]
        lengths = torch.tensor([completion.ids.numel() for completion in completions])
        finished = torch.tensor([completion.finished for completion in completions])
        counted = torch.ones(len(completions))
        if settings.mask_truncated_completions:
            counted = finished.float()
        weights = completion_weights(lengths, counted=counted, loss_type=settings.loss_type)
        batch = collate_groups(
            [group.prompt for group in chosen],
            completions=[[completion.ids.tolist() for completion in group.completions] for group in chosen],
            weights=weights.view(len(chosen), -1).tolist(),
            specials=chosen[0].prompt.specials,
        )
        sampled = torch.cat([completion.logprobs for completion in completions])
        extra = {
            "advantages": gains[picked],
            "loss_mask": counted[batch.target_samples],
            **self._logprobs(model, batch=batch, sampled=sampled),
            **_metrics(scores, picked=picked, spread=spread, lengths=lengths, finished=finished),
        }
        return replace(batch, extra=extra)

    @torch.no_grad()
    def _logprobs(self, model: Any, *, batch: Batch, sampled: Tensor) -> dict[str, Tensor]:
        """Log-probs of the targets under policy and reference, and how far the sampler's were off, each (T,)."""
        moved = batch.to(next(model.parameters()).device)
        old = _forward(model, moved, temperature=self.settings.temperature)
        found = {"old_logprobs": old, SAMPLER_GAP: (old - sampled).abs()}
        if self._reference is not None:
            found["ref_logprobs"] = _forward(self._reference, moved, temperature=self.settings.temperature)
        return found

    def _check(self, batches: Sequence[Batch], *, rollout: int) -> None:
        """Refuse to train on numbers that do not belong together.

        Raises:
            ValueError: sampler and trainer disagree, or policy and reference do before the first update.
        """
        for batch in batches:
            gap = batch.extra[SAMPLER_GAP]
            if not float(gap.max()) <= self.settings.max_logprob_gap:
                sample = batch.keys[int(batch.target_samples[int(gap.argmax())])]
                raise ValueError(
                    f"sampler and trainer disagree by {float(gap.max()):.3g} nats on a token of {sample}, more than "
                    f"grpo.max_logprob_gap={self.settings.max_logprob_gap}: they read different inputs or weights, "
                    "or the precision is too coarse for this bound"
                )
            if self._reference is not None and rollout == 0:
                apart = float((batch.extra["ref_logprobs"] - batch.extra["old_logprobs"]).abs().max())
                if not apart <= REFERENCE_GAP:
                    raise ValueError(
                        f"policy and reference differ by {apart:.3g} nats before the first update ({batch.keys[0]}): "
                        "the source was made after weights were changed, or the reference reads other inputs"
                    )


def _forward(model: Any, batch: Batch, *, temperature: float) -> Tensor:
    """(T,) float32 log-probs of the targets, on CPU."""
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        segments=batch.segments,
        media=batch.media,
        target_positions=batch.target_positions,
    )
    return token_logprobs(output.logits, target_ids=batch.target_ids, temperature=temperature).cpu()


def _rows(spread: Tensor, *, settings: GrpoSettings) -> list[list[int]]:
    """Group numbers of each packed row. Rows stay as many as they are, so that ranks keep in step.

    A row that would lose all its groups to drop_zero_variance keeps the first: its gradient is the KL's alone.
    """
    per_group = spread.view(-1, settings.num_generations)[:, 0].tolist()
    rows = []
    for start in range(0, len(per_group), settings.prompts_per_batch):
        row = list(range(start, min(start + settings.prompts_per_batch, len(per_group))))
        varied = [number for number in row if per_group[number] > ZERO_STD]
        rows.append((varied or row[:1]) if settings.drop_zero_variance else row)
    return rows


def _rows_per_rank(settings: GrpoSettings) -> int:
    """Packed rows every rank must deliver, whatever happened to its prompts."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return -(-(settings.num_prompts // ranks) // settings.prompts_per_batch)


def _empty_batch(special: SpecialIds) -> Batch:
    """A row that weighs nothing, in place of prompts whose media could not be read, so that ranks keep in step."""
    batch = collate([], specials=special, weighting="token")
    nothing = torch.zeros(len(batch.target_ids))
    names = ("advantages", "old_logprobs", "ref_logprobs", "loss_mask")
    return replace(batch, extra=dict.fromkeys(names, nothing))


def _advantages(rewards: Tensor, *, settings: GrpoSettings) -> Tensor:
    """(n,) advantages of this rank's completions; only the std of the whole batch needs the other ranks."""
    everyone, before = rewards, 0
    if settings.scale_rewards == "batch" and dist.is_initialized():
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, rewards.tolist())
        before = sum(len(part) for part in parts[: dist.get_rank()])
        everyone = torch.tensor([value for part in parts for value in part])
    groups = torch.arange(len(everyone)) // settings.num_generations
    gains = advantages(everyone, groups=groups, scale_rewards=settings.scale_rewards)
    return gains[before : before + len(rewards)]


def _metrics(scores: Scores, *, picked: Tensor, spread: Tensor, lengths: Tensor, finished: Tensor) -> dict[str, Tensor]:
    """What the objective reports per completion, under TRL's names."""
    size = lengths.float()
    nothing = torch.full_like(size, float("nan"))
    values = {
        "reward": scores.total[picked],
        "reward_std": spread[picked],  # mean over groups of their std
        "frac_reward_zero_std": (spread[picked] <= ZERO_STD).float(),
        "completions/mean_length": size,
        "completions/mean_terminated_length": torch.where(finished, size, nothing),
        "completions/clipped_ratio": (~finished).float(),
    }
    values |= {f"rewards/{name}/mean": part[picked] for name, part in scores.parts.items()}
    return {METRIC + name: value for name, value in values.items()}
