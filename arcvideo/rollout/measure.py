"""The numbers of a rollout over all ranks, under TRL's names where TRL has one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from arcvideo.processes.activity import waiting
from arcvideo.rollout.rewards.score import Scores
from arcvideo.sampling.groups import Group

ZERO_STD = 1e-6
"""A group whose rewards spread less than this teaches nothing."""
IOU = "temporal_iou"
"""The reward whose values are counted in bins."""
IOU_BINS = (0.0, 0.3, 0.5, 0.7, 1.0)
"""Edges: the thresholds of R@m."""
TIMES = ("rollout/seconds/", "rollout/tokens_per_second")
"""Beginnings of the metrics that tell of the sampling itself."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was sampled at a step, on all ranks. n completions."""

    tasks: list[str]
    """(n,)."""
    total: Tensor
    """(n,) float32 weighted rewards; NaN where none applies."""
    spread: Tensor
    """(n,) float32 std of each completion's group."""
    parts: dict[str, Tensor]
    """Reward -> (n,) float32; NaN where it does not apply."""
    failures: dict[str, Tensor]
    """Reward -> (n,) float32, 1 where it could read nothing; NaN where it does not apply."""
    lengths: Tensor
    """(n,) float32 tokens."""
    finished: Tensor
    """(n,) bool."""
    seconds: dict[str, float]
    """Phase -> seconds of the slowest rank."""

    @property
    def count(self) -> int:
        """n."""
        return len(self.tasks)


def gathered(value: Any) -> list[Any]:
    """Return every rank's value, in rank order; all ranks must ask together."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    parts: list[Any] = [None] * dist.get_world_size()
    with waiting():
        dist.all_gather_object(parts, value)
    return parts


def report(groups: Sequence[Group], scores: Scores, *, spread: Tensor, seconds: Mapping[str, float]) -> Report:
    """Return what all ranks sampled; all of them must call it together."""
    completions = [completion for group in groups for completion in group.completions]
    mine = {
        "tasks": [group.prompt.task for group in groups for _ in group.completions],
        "total": scores.total.tolist(),
        "spread": spread.tolist(),
        "parts": {name: part.tolist() for name, part in scores.parts.items()},
        "failures": {name: part.tolist() for name, part in scores.parse_failures().items()},
        "lengths": [float(completion.ids.numel()) for completion in completions],
        "finished": [completion.finished for completion in completions],
        "seconds": dict(seconds),
    }
    parts = gathered(mine)
    return Report(
        tasks=[task for part in parts for task in part["tasks"]],
        total=_joined(parts, "total"),
        spread=_joined(parts, "spread"),
        parts=_joined_tables(parts, "parts"),
        failures=_joined_tables(parts, "failures"),
        lengths=_joined(parts, "lengths"),
        finished=torch.tensor([done for part in parts for done in part["finished"]], dtype=torch.bool),
        seconds={name: max(part["seconds"].get(name, 0.0) for part in parts) for name in seconds},
    )


def _joined(parts: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    return torch.tensor([value for part in parts for value in part[name]], dtype=torch.float32)


def _joined_tables(parts: Sequence[Mapping[str, Any]], table: str) -> dict[str, Tensor]:
    """Return columns of all ranks; a rank that lacks one did not use that reward."""
    names = dict.fromkeys(name for part in parts for name in part[table])
    return {
        name: torch.tensor(
            [value for part in parts for value in part[table].get(name, [math.nan] * len(part["tasks"]))],
            dtype=torch.float32,
        )
        for name in names
    }


def metrics(found: Report) -> dict[str, float]:
    """Return the figures of a rollout, the same on every rank; what nothing was counted for is left out."""
    values = _rewards(found) | _tasks(found) | _iou(found) | _completions(found) | _speed(found)
    return {name: value for name, value in values.items() if not math.isnan(value)}


def gap_metrics(gaps: Sequence[Tensor], *, bound: float) -> dict[str, float]:
    """Return what sampler and trainer disagree about over all ranks: the mean gap in nats, and how many tokens are out.

    Args:
        gaps: of each row of this rank (T,) |log-prob of the sampler - log-prob of the trainer|; all ranks must call it
            together.
        bound: tokens above it are out of the loss.
    """
    outside = sum(int((~(gap <= bound)).sum()) for gap in gaps)
    parts = gathered(
        [sum(float(gap[gap.isfinite()].double().sum()) for gap in gaps), sum(gap.numel() for gap in gaps), outside]
    )
    total, count, outliers = (sum(part[place] for part in parts) for place in range(3))
    return {"rollout/logprob_gap": total / count, "rollout/logprob_outliers": float(outliers)} if count else {}


def _mean(values: Tensor) -> float:
    return float(values.nanmean()) if len(values) else math.nan


def _std(values: Tensor) -> float:
    """Unbiased, NaN left out; 0 for a single value."""
    kept = values[~values.isnan()]
    return float(kept.std()) if len(kept) > 1 else 0.0


def _rewards(found: Report) -> dict[str, float]:
    values = {
        "reward": _mean(found.total),
        "reward_std": _mean(found.spread),  # mean over groups of their std
        "frac_reward_zero_std": _mean((found.spread <= ZERO_STD).float()),
    }
    for name, part in found.parts.items():
        values |= {f"rewards/{name}/mean": _mean(part), f"rewards/{name}/std": _std(part)}
    for name, part in found.failures.items():
        values[f"rewards/{name}/parse_failures"] = _mean(part)
    return values


def _tasks(found: Report) -> dict[str, float]:
    values: dict[str, float] = {}
    for task in sorted(set(found.tasks)):
        mine = torch.tensor([name == task for name in found.tasks])
        values |= {
            f"tasks/{task}/reward": _mean(found.total[mine]),
            f"tasks/{task}/reward_std": _mean(found.spread[mine]),
            f"tasks/{task}/frac_reward_zero_std": _mean((found.spread[mine] <= ZERO_STD).float()),
        }
    return values


def _iou(found: Report) -> dict[str, float]:
    """Shares of the completions that were scored by their overlap: none at all, then bin by bin."""
    if IOU not in found.parts:
        return {}
    overlap = found.parts[IOU][~found.parts[IOU].isnan()]
    if not len(overlap):
        return {}
    values = {"iou_histogram/0": _mean((overlap <= 0).float())}
    for low, high in pairwise(IOU_BINS):
        inside = (overlap >= low) & (overlap > 0) & ((overlap < high) | (high == 1.0))
        values[f"iou_histogram/{low:g}-{high:g}"] = _mean(inside.float())
    return values


def _completions(found: Report) -> dict[str, float]:
    if not found.count:
        return {}
    ended = found.lengths[found.finished]
    return {
        "completions/mean_length": _mean(found.lengths),
        "completions/min_length": float(found.lengths.min()),
        "completions/max_length": float(found.lengths.max()),
        "completions/mean_terminated_length": _mean(ended),
        "completions/clipped_ratio": _mean((~found.finished).float()),
    }


def _speed(found: Report) -> dict[str, float]:
    """Return seconds of the slowest rank per phase, and completion tokens of all ranks a second of sampling."""
    values = {f"rollout/seconds/{name}": seconds for name, seconds in found.seconds.items()}
    sampling = sum(found.seconds.get(name, 0.0) for name in ("encode", "prefill", "decode"))
    if sampling > 0:
        values["rollout/tokens_per_second"] = float(found.lengths.sum()) / sampling
    return values
