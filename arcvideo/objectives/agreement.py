"""Sampler and trainer must give a token the same log-probability; where rounding decides otherwise it is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from arcvideo.objectives.settings import GrpoSettings

GAP, OUTLIERS = "rollout/logprob_gap", "rollout/logprob_outliers"
"""Metrics: the mean gap in nats, and how many tokens are out."""


def agreeing(gap: Tensor, *, settings: GrpoSettings) -> Tensor:
    """Return (T,) float32: 1 for tokens whose log-probability sampler and trainer agree about, 0 for the others.

    Args:
        gap: (T,) |log-prob of the sampler - log-prob of the trainer|, nats; nan agrees with nothing.
        settings: `max_logprob_gap`.
    """
    return (gap <= settings.max_logprob_gap).float()


def gap_pairs(gap: Tensor, *, settings: GrpoSettings) -> dict[str, tuple[Tensor, float]]:
    """Return what a row adds to the step's account: (sum, count) of its gaps, and of its tokens that are out.

    Args:
        gap: (T,) as in `agreeing`.
        settings: `max_logprob_gap`.
    """
    count = float(gap.numel())
    outside = (1 - agreeing(gap, settings=settings)).sum()
    return {GAP: (gap.nan_to_num(0.0, 0.0, 0.0).sum(), count), OUTLIERS: (outside, count)}


def judged(pairs: Sequence[Mapping[str, Sequence[float]]], *, settings: GrpoSettings) -> dict[str, float]:
    """Return the two metrics of a step from the `gap_pairs` of all ranks; empty where none has any.

    Args:
        pairs: of each rank, metric -> [sum, count].
        settings: `max_logprob_gap`, `max_logprob_outliers`.

    Raises:
        ValueError: more tokens disagree than may.
    """
    counted = [part for part in pairs if OUTLIERS in part]
    apart, total = sum(part[OUTLIERS][0] for part in counted), sum(part[GAP][0] for part in counted)
    count = sum(part[GAP][1] for part in counted)
    if not count:
        return {}
    refuse_many(round(apart), count=round(count), settings=settings, apart=f"by {total / count:.3g} nats on average")
    return {GAP: total / count, OUTLIERS: apart}


def refuse_many(outliers: int, *, count: int, settings: GrpoSettings, apart: str) -> None:
    """Raise ValueError when more tokens of a rollout disagree than may; one always may.

    In bf16 one of some ten thousand tokens is an outlier by chance; inputs or weights that differ move most of them.

    Args:
        outliers: tokens above `max_logprob_gap`, over all ranks.
        count: tokens of the rollout, over all ranks.
        settings: `max_logprob_gap`, `max_logprob_outliers`.
        apart: how far they are apart, for the message.
    """
    if outliers <= max(1, int(settings.max_logprob_outliers * count)):
        return
    raise ValueError(
        f"sampler and trainer disagree by more than grpo.max_logprob_gap={settings.max_logprob_gap} nats about "
        f"{outliers} of {count} tokens ({apart}), and grpo.max_logprob_outliers={settings.max_logprob_outliers} of "
        "them may: they read different inputs or weights, or the precision is too coarse for this bound"
    )
