"""What must hold before anything is learned; each failure is one line with number and remedy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from arcvideo.feed.prompts import Prompt
from arcvideo.model.settings import ModelSettings
from arcvideo.objectives.agreement import agreeing, refuse_many
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.measure import ZERO_STD, Report, gathered
from arcvideo.types import Batch

REFERENCE_GAP = 1e-3
"""Largest difference in nats between policy and reference before the first update; they are the same weights."""


def check_media(prompts: Sequence[Prompt], *, sizes: ModelSettings) -> None:
    """Media tokens are never cut, neither the ids nor the frames behind them.

    Raises:
        ValueError: a prompt with more or fewer media tokens than its clips fill.
    """
    for prompt in prompts:
        have = int((prompt.input_ids == prompt.specials.image).sum())
        need = sum(sizes.placeholders(media.frame_count) for media in prompt.media)
        if have != need:
            raise ValueError(
                f"{prompt.key}: the prompt holds {have} media tokens but its frames fill {need}; media must not be "
                "cut: raise data.token_budget or leave the clip out"
            )


def check_sampler(batches: Sequence[Batch], gaps: Sequence[Tensor], *, settings: GrpoSettings) -> None:
    """Sampler and trainer must give the same log-probabilities, but for a few tokens where rounding decides.

    All ranks must call it together.

    Args:
        batches: rows of groups of this rank.
        gaps: of each of them (T,) |log-prob of the sampler - log-prob of the trainer|, nats.
        settings: `max_logprob_gap`, `max_logprob_outliers`.

    Raises:
        ValueError: on every rank, when more tokens of the rollout disagree than may.
    """
    outliers = sum(int((agreeing(gap, settings=settings) == 0).sum()) for gap in gaps)
    worst, sample = max((_worst(batch, gap) for batch, gap in zip(batches, gaps, strict=True)), default=(0.0, ""))
    parts = gathered([outliers, sum(gap.numel() for gap in gaps), worst, sample])
    outliers, count = (sum(part[place] for part in parts) for place in (0, 1))
    worst, sample = max((part[2], part[3]) for part in parts)
    refuse_many(outliers, count=count, settings=settings, apart=f"by {worst:.3g} nats about one of {sample}")


def _worst(batch: Batch, gap: Tensor) -> tuple[float, str]:
    """Return the largest gap of a row, infinite for one that is not a number, and the sample it belongs to."""
    gaps = gap.nan_to_num(nan=float("inf"))
    if not len(gaps):
        return 0.0, ""
    return float(gaps.max()), batch.keys[int(batch.target_samples[int(gaps.argmax())])]


def check_reference(batches: Sequence[Batch]) -> None:
    """Before the first update policy and reference are the same weights.

    Raises:
        ValueError: they differ.
    """
    for batch in batches:
        if "ref_logprobs" not in batch.extra or not batch.keys[0]:
            continue
        apart = float((batch.extra["ref_logprobs"] - batch.extra["old_logprobs"]).abs().max())
        if not apart <= REFERENCE_GAP:
            raise ValueError(
                f"policy and reference differ by {apart:.3g} nats before the first update ({batch.keys[0]}): the "
                "source was made after weights were changed, or the reference reads other inputs"
            )


def check_rewards(report: Report) -> None:
    """At least one group of the first rollout must have better and worse completions, or nothing is learned.

    Args:
        report: of all ranks.

    Raises:
        ValueError: no group has; the message tells what every reward gave.
    """
    if not report.count or bool((report.spread > ZERO_STD).any()):
        return
    ranges = []
    for name, values in report.parts.items():
        given = values[~values.isnan()]
        unread = report.failures.get(name, torch.zeros(0)).nansum()
        worth = f"{float(given.min()):.3g} to {float(given.max()):.3g}" if len(given) else "nothing"
        ranges.append(f"{name} {worth}" + (f" ({int(unread)} of {len(given)} unreadable)" if unread else ""))
    raise ValueError(
        f"no reward varies within any group of the first rollout ({'; '.join(ranges)}): nothing can be learned. Start "
        "from a parent that answers some prompts right, raise grpo.temperature or grpo.num_generations, choose a "
        "denser reward in grpo.rewards, or set grpo.require_reward_spread=false"
    )


def clipped_warning(report: Report, *, settings: GrpoSettings) -> str | None:
    """Return a warning when more completions were cut off than `grpo.clipped_warning` allows, else None.

    Args:
        report: of all ranks.
        settings: `clipped_warning`, `max_completion_length`, `mask_truncated_completions`.
    """
    share = float((~report.finished).float().mean()) if report.count else 0.0
    if share <= settings.clipped_warning:
        return None
    effect, mask = "and their rewards are those of half an answer", ", set grpo.mask_truncated_completions=true"
    if settings.mask_truncated_completions:
        effect, mask = "and grpo.mask_truncated_completions leaves them out of the loss", ""
    return (
        f"{share:.0%} of {report.count} completions were cut off at grpo.max_completion_length="
        f"{settings.max_completion_length}, {effect}: raise the length, end answers with grpo.stop{mask}, or start "
        f"from a parent that ends its answers (said once; grpo.clipped_warning={settings.clipped_warning:g})"
    )


def check_lengths(report: Report, *, longest: int) -> None:
    """With truncated completions masked, at least one of the first rollout must have ended by itself.

    Args:
        report: of all ranks.
        longest: tokens after which completions are cut off.

    Raises:
        ValueError: none has.
    """
    if report.count and not bool(report.finished.any()):
        raise ValueError(
            f"all {report.count} completions of the first rollout were cut off at "
            f"grpo.max_completion_length={longest}, and grpo.mask_truncated_completions leaves every one of them out: "
            "raise the length, or start from a parent that ends its answers"
        )
