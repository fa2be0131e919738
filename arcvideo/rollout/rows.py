"""From chosen groups to packed rows: weights, advantages, and as many rows on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from arcvideo.feed.collate import collate, collate_groups
from arcvideo.model.special import SpecialIds
from arcvideo.objectives.grpo import advantages, completion_weights
from arcvideo.objectives.scores import Ask
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.measure import ZERO_STD, gathered
from arcvideo.sampling.groups import Group
from arcvideo.types import Batch, model_inputs


def rows_of(chosen: Sequence[int], *, spread: Tensor, settings: GrpoSettings) -> list[list[int]]:
    """Group numbers of each packed row. Rows stay as many as they are, so that ranks keep in step.

    A row that would lose all its groups to drop_zero_variance keeps the first: its gradient is the KL's alone.

    Args:
        chosen: numbers of the groups to train on.
        spread: (n,) std of the group of each completion of all groups.
        settings: `prompts_per_batch`, `drop_zero_variance`.
    """
    per_group = spread.view(-1, settings.num_generations)[:, 0].tolist() if len(spread) else []
    rows = []
    for start in range(0, len(chosen), settings.prompts_per_batch):
        row = list(chosen[start : start + settings.prompts_per_batch])
        varied = [number for number in row if per_group[number] > ZERO_STD]
        rows.append((varied or row[:1]) if settings.drop_zero_variance else row)
    return rows


def rows_per_rank(count: int, *, settings: GrpoSettings) -> int:
    """Return packed rows every rank must deliver, whatever happened to its prompts; with refills all ranks ask
    together.

    Args:
        count: rows that this rank has.
        settings: `num_prompts`, `prompts_per_batch`, `max_refills`.
    """
    if settings.max_refills:  # the groups that vary may lie unevenly
        return max(1, *gathered(count))
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return -(-(settings.num_prompts // ranks) // settings.prompts_per_batch)


def pack(groups: Sequence[Group], *, gains: Tensor, settings: GrpoSettings) -> Batch:
    """Return one packed row: every prompt once, its completions as branches.

    Args:
        groups: of this row.
        gains: (completions,) advantages.
        settings: weights and masks.
    """
    completions = [completion for group in groups for completion in group.completions]
    lengths = torch.tensor([completion.ids.numel() for completion in completions])
    counted = torch.ones(len(completions))
    if settings.mask_truncated_completions:
        counted = torch.tensor([completion.finished for completion in completions]).float()
    weights = completion_weights(lengths, counted=counted, loss_type=settings.loss_type)
    batch = collate_groups(
        [group.prompt for group in groups],
        completions=[[completion.ids.tolist() for completion in group.completions] for group in groups],
        weights=weights.view(len(groups), -1).tolist(),
        specials=groups[0].prompt.specials,
    )
    return replace(batch, extra={"advantages": gains, "loss_mask": counted[batch.target_samples]})


def weighted(batches: Sequence[Batch], *, settings: GrpoSettings) -> list[Batch]:
    """Return the batches, with weights even when every completion of the step was cut off and is masked out.

    Nothing is learned from such a step (its loss mask is zero), but a sum of weights of zero would end the run.
    """
    rows = list(batches)
    if not settings.mask_truncated_completions:
        return rows
    total = sum(float(batch.target_weights.sum()) for batch in rows)
    if any(part > 0 for part in gathered(total)):
        return rows
    return [replace(batch, target_weights=torch.ones_like(batch.target_weights)) for batch in rows]


def empty_row(special: SpecialIds) -> Batch:
    """Return a row that weighs nothing, in place of prompts whose media could not be read, so that ranks keep in
    step.
    """
    batch = collate([], specials=special, weighting="token")
    nothing = torch.zeros(len(batch.target_ids))
    names = ("advantages", "old_logprobs", "ref_logprobs", "loss_mask")
    return replace(batch, extra=dict.fromkeys(names, nothing))


def gains_of(rewards: Tensor, *, tasks: Sequence[str], settings: GrpoSettings) -> Tensor:
    """Return (n,) advantages of this rank's completions; only the std of the whole batch needs the other ranks.

    Args:
        rewards: (n,) group after group.
        tasks: (n,) of the completions, for their weights.
        settings: `scale_rewards`, `task_weights`.
    """
    everyone, before = rewards, 0
    if settings.scale_rewards == "batch":
        parts = gathered(rewards.tolist())
        rank = dist.get_rank() if dist.is_initialized() else 0
        before = sum(len(part) for part in parts[:rank])
        everyone = torch.tensor([value for part in parts for value in part])
    groups = torch.arange(len(everyone)) // settings.num_generations
    gains = advantages(everyone, groups=groups, scale_rewards=settings.scale_rewards)
    weights = torch.tensor([settings.task_weights.get(task, 1.0) for task in tasks])
    return gains[before : before + len(rewards)] * weights


def forward_logprobs(model: Any, batch: Batch, *, temperature: float) -> Tensor:
    """Return (T,) float32 log-probs of the targets, on CPU."""
    output = model(**model_inputs(batch), ask=Ask(ids=batch.target_ids, temperature=temperature))
    logprobs: Tensor = output.scores[0]
    return logprobs.cpu()
