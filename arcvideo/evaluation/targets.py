"""What a recipe should reach, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arcvideo.evaluation.bootstrap import Interval, paired_difference
from arcvideo.evaluation.predictions import read_scores
from arcvideo.evaluation.settings import part_of
from arcvideo.tasks import TASKS

Metrics = Mapping[str, Mapping[str, float]]
"""metric -> {"value", "low", "high", "chance", "n"}."""


ERRORS = frozenset(measure.name for task in TASKS.values() for measure in task.measures if measure.lower_is_better)
"""Metrics of which less is better."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One promise about one metric after one stage; the bounds that are set must all hold."""

    stage: str
    """Stage after which it is measured."""
    metric: str
    """Name of the metric; with a tag in brackets it is over the items of that tag, `mcq_accuracy[needs:audio]`."""
    at_most: float | None = None
    """Largest value allowed."""
    at_least: float | None = None
    """Smallest value allowed."""
    surely: bool = False
    """The bounds must hold for the whole 95 % interval, not for the value alone."""
    at_chance: bool = False
    """The 95 % interval must reach down to the chance level."""
    above_metric: str | None = None
    """The lower end of the interval must lie above the value of this metric of the same stage."""
    above_stage: str | None = None
    """The paired bootstrap's 95 % interval of the difference to that stage must lie above zero (below it for an error:
    `above` and `below` mean better and worse)."""
    not_below_stage: str | None = None
    """The paired bootstrap's 95 % interval of the difference to that stage must not lie below zero."""
    within: float | None = None
    """With `not_below_stage`: the whole interval must lie above minus this. So it shows that little is lost, where
    without it a loss must only not be shown."""

    def __post_init__(self) -> None:
        """Check the combination; the message names the remedy."""
        if self.within is not None and (self.not_below_stage is None or self.within <= 0):
            raise ValueError(
                f"{self.stage} {self.metric}: within={self.within:g} must be above 0 and stand beside not_below_stage"
            )
        if self.surely and self.at_least is None and self.at_most is None:
            raise ValueError(f"{self.stage} {self.metric}: surely stands beside at_least or at_most")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A question about two stages that is answered at the end, whatever the answer."""

    metric: str
    """Name of the metric."""
    stage: str
    """Stage that is compared."""
    minus: str
    """Stage that is subtracted."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target, whether it is met, and the figures that say so."""

    target: Target
    met: bool
    reason: str


def judge(targets: Sequence[Target], *, metrics: Mapping[str, Metrics], run_dir: Path) -> list[Verdict]:
    """Compare targets with what the stages measured; a metric that is missing is a target missed."""
    return [_judge(target, metrics=metrics, run_dir=run_dir) for target in targets]


def compare(comparisons: Sequence[Comparison], *, run_dir: Path) -> list[dict[str, Any]]:
    """Return paired differences with their 95 % intervals.

    Raises:
        ValueError: the two stages were measured on different items.
    """
    rows = []
    for one in comparisons:
        found = _difference(one.metric, stage=one.stage, minus=one.minus, run_dir=run_dir)
        rows.append({**asdict(one), "mean": found.mean, "low": found.low, "high": found.high})
    return rows


def _judge(target: Target, *, metrics: Mapping[str, Metrics], run_dir: Path) -> Verdict:
    measured = metrics.get(target.stage, {}).get(target.metric)
    if measured is None:
        return Verdict(target=target, met=False, reason="not measured")
    checks: list[tuple[bool, str]] = []
    least, most = (measured["low"], measured["high"]) if target.surely else (measured["value"],) * 2
    names = ("low ", "high ") if target.surely else ("", "")
    if target.at_most is not None:
        checks.append((most <= target.at_most, f"{names[1]}{most:.3f} <= {target.at_most:g}"))
    if target.at_least is not None:
        checks.append((least >= target.at_least, f"{names[0]}{least:.3f} >= {target.at_least:g}"))
    if target.at_chance:
        checks.append(
            (measured["low"] <= measured["chance"], f"low {measured['low']:.3f} <= chance {measured['chance']:.3f}")
        )
    if target.above_metric is not None:
        other = metrics[target.stage][target.above_metric]["value"]
        checks.append((measured["low"] > other, f"low {measured['low']:.3f} > {target.above_metric} {other:.3f}"))
    for stage, strict in ((target.above_stage, True), (target.not_below_stage, False)):
        if stage is not None:
            found = _difference(target.metric, stage=target.stage, minus=stage, run_dir=run_dir)
            checks.append(_against(found, target=target, stage=stage, strict=strict))
    return Verdict(target=target, met=all(met for met, _ in checks), reason="; ".join(text for _, text in checks))


def _against(found: Interval, *, target: Target, stage: str, strict: bool) -> tuple[bool, str]:
    """Return whether a difference to another stage is what the target asks for, and the words that say so."""
    mean, low, high = found
    text = f"minus {stage}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    worst, best = (-high, -low) if part_of(target.metric)[0] in ERRORS else (low, high)
    if strict:
        return worst > 0, text
    if target.within is None:
        return best >= 0, text
    return worst > -target.within, f"{text}, at most {target.within:g} worse"


def _difference(metric: str, *, stage: str, minus: str, run_dir: Path) -> Interval:
    ours, theirs = (read_scores(run_dir / name / "predictions.jsonl", metric=metric) for name in (stage, minus))
    # Clips of another set may have the same keys.
    asked, wanted = ({key: (row.question, row.truth) for key, row in rows.items()} for rows in (ours, theirs))
    if asked != wanted:
        raise ValueError(f"{metric}: {stage} and {minus} were measured on different items; evaluate them again")
    keys = sorted(ours)
    return paired_difference(
        [ours[key].score for key in keys],
        [theirs[key].score for key in keys],
        weights=[ours[key].weight for key in keys],
        clips=[ours[key].clip for key in keys],
    )
