"""Scoring groups with weighted rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from arcvideo.feed.prompts import Prompt
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.rewards.builtin import RESERVED, Reward, awaited, quiet
from arcvideo.rollout.rewards.loading import load_reward
from arcvideo.sampling.groups import Group


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Rewards of all completions of some groups, group after group."""

    total: Tensor
    """(n,) float32: weighted sum of the rewards that apply; NaN where none does."""
    parts: dict[str, Tensor]
    """Reward name -> (n,) float32, unweighted; NaN where it does not apply."""
    notes: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Reward name -> name -> a note for each completion: what was read, or why nothing could be."""

    def parse_failures(self) -> dict[str, Tensor]:
        """Reward name -> (n,) float32, 1 where it could not read the completion; NaN where it does not apply."""
        failures = {}
        for name, notes in self.notes.items():
            if "problem" in notes:
                failed = torch.tensor([float(problem is not None) for problem in notes["problem"]])
                failures[name] = failed.masked_fill(self.parts[name].isnan(), math.nan)
        return failures


def score(groups: Sequence[Group], *, settings: GrpoSettings) -> Scores:
    """Score every completion.

    Args:
        groups: what was sampled.
        settings: give each task its rewards and their weights.

    Raises:
        ValueError: a reward is unknown, fails, returns a wrong number of scores or one that is not finite, or no
            reward applies to a whole group. The message names the reward and the sample.
    """
    completions = [completion.text for group in groups for completion in group.completions]
    if not completions:
        return Scores(total=torch.zeros(0), parts={name: torch.zeros(0) for name in settings.reward_names})
    columns = reward_columns(groups)
    weights = _weights(columns["task"], settings=settings)
    parts, notes = {}, {}
    for name, weight in weights.items():
        part, notes[name] = _call(load_reward(name), name=name, completions=completions, columns=columns)
        parts[name] = part.masked_fill(weight.isnan(), math.nan)
    stacked = torch.stack(list(parts.values()))  # (rewards, n)
    total = (stacked * torch.stack(list(weights.values()))).nansum(dim=0)
    total[stacked.isnan().all(dim=0)] = math.nan
    _check_applies(total, groups=groups, settings=settings)
    return Scores(total=total, parts=parts, notes=notes)


def _weights(tasks: Sequence[str], *, settings: GrpoSettings) -> dict[str, Tensor]:
    """Reward -> (n,) its weight for each completion; NaN where the completion's task does not use it."""
    tables = {task: settings.rewards_of(task) for task in set(tasks)}
    names = [name for name in settings.reward_names if any(name in table for table in tables.values())]
    return {name: torch.tensor([tables[task].get(name, math.nan) for task in tasks]) for name in names}


def reward_columns(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Return the columns every reward gets, one entry per completion: every field of the items, None where one lacks
    it, and over them what is compared with answers and what the rollout knows.
    """
    rows = [(group.prompt, completion) for group in groups for completion in group.completions]
    fields = sorted({name for group in groups for name in group.prompt.sample.fields} - RESERVED)
    columns: dict[str, list[Any]] = {name: [prompt.sample.fields.get(name) for prompt, _ in rows] for name in fields}
    names = sorted({name for group in groups for name in group.prompt.truth})
    columns |= {name: [prompt.truth.get(name) for prompt, _ in rows] for name in names}
    columns["prompts"] = [prompt.question for prompt, _ in rows]
    columns["completion_ids"] = [completion.ids.tolist() for _, completion in rows]
    columns["key"] = [prompt.key for prompt, _ in rows]
    columns["task"] = [prompt.task for prompt, _ in rows]
    columns["duration"] = [_duration(group.prompt) for group in groups for _ in group.completions]
    return columns


def _duration(prompt: Prompt) -> float | None:
    """Return seconds of the clip; without them those that the model reads, which stop growing at 300 s."""
    if prompt.duration is not None:
        return prompt.duration
    return float(max(max(media.seconds, media.frame_count) for media in prompt.media)) if prompt.media else None


def _call(
    reward: Reward, *, name: str, completions: list[str], columns: dict[str, list[Any]]
) -> tuple[Tensor, dict[str, list[Any]]]:
    notes: dict[str, list[Any]] = {}

    def log_extra(note: str, values: Sequence[Any]) -> None:
        if len(values) != len(completions):
            raise ValueError(f"log_extra({note!r}) got {len(values)} values for {len(completions)} completions")
        notes[note] = list(values)

    try:
        scores = awaited(reward(completions=completions, log_extra=log_extra, **columns))
    except Exception as error:
        key, cause = _culprit(reward, completions=completions, columns=columns)
        raise ValueError(f"reward {name!r} failed on sample {key}: {cause or repr(error)}") from error
    if len(scores) != len(completions):
        raise ValueError(f"reward {name!r} returned {len(scores)} scores for {len(completions)} completions")
    for value, key, text in zip(scores, columns["key"], completions, strict=True):
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"reward {name!r} returned {value} for sample {key}, completion {text!r}; use None to abstain"
            )
    return torch.tensor([math.nan if value is None else float(value) for value in scores]), notes


def _culprit(reward: Reward, *, completions: list[str], columns: dict[str, list[Any]]) -> tuple[str, str]:
    """Key and error of the first completion that fails alone; a reward that only fails on all names the whole batch."""
    for index, text in enumerate(completions):
        try:
            alone = {column: [values[index]] for column, values in columns.items()}
            awaited(reward(completions=[text], log_extra=quiet, **alone))
        except Exception as error:
            return columns["key"][index], f"{error!r} on completion {text!r}"
    return f"{columns['key'][0]} .. {columns['key'][-1]} (only as a batch)", ""


def _check_applies(total: Tensor, *, groups: Sequence[Group], settings: GrpoSettings) -> None:
    start = 0
    for group in groups:
        end = start + len(group.completions)
        if total[start:end].isnan().all():
            rewards = ", ".join(settings.rewards_of(group.prompt.task))
            raise ValueError(
                f"no reward of grpo.rewards ({rewards}) applies to sample {group.prompt.key} of task "
                f"{group.prompt.task!r}; add one that does, in grpo.rewards or "
                f"grpo.task_rewards.{group.prompt.task}, or leave this task out of the sources"
            )
        start = end
