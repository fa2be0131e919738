"""Settings of evaluation. No torch here: settings are checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

from arcvideo.named import brought, path_of
from arcvideo.tasks import TASKS

FORM = "format_valid"
"""The figure of all tasks: the share of answers that are one think and one answer block."""


def metric_names(*, on_request: bool = True) -> tuple[str, ...]:
    """Return every metric name there is, in the order of the table: those that tasks bring, then the form.

    Args:
        on_request: also those that are not measured unless they are named.
    """
    measures = [measure for task in TASKS.values() for measure in task.measures]
    return (*(measure.name for measure in measures if on_request or not measure.on_request), FORM)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured on held-out clips after a stage."""

    shards: str = ""
    """Held-out tar files: a path with {000..011} braces or * globs; empty skips evaluation."""
    metrics: list[str] = field(default_factory=lambda: list(metric_names(on_request=False)))
    """Which figures to report: those that tasks bring, or your own (entry points `arcvideo.metrics`, or
    `package.module:function`) of an answer and its truth; one without items in the shards is left out."""
    items: int = 200
    """Items per metric, spread over the held-out set; 0 takes all."""
    style: str = "plain"
    """How answers are asked for: plain, or think (with the instruction suffix, answers in tags)."""
    max_new_tokens: int = 64
    """Tokens after which an answer is cut off."""
    batch_prompts: int = 64
    """Prompts decoded together."""
    bootstrap: int = 1000
    """Resamples behind each 95 % interval."""
    seed: int = 0
    """Seed of the resampling."""
    samples: int = 4
    """Predictions per metric shown in the report."""
    optimize: str = "mcq_accuracy"
    """Metric that a stage run returns to Hydra's sweepers: one of `metrics`, or `train/loss` of the last step."""

    def __post_init__(self) -> None:
        """Check values; the message names the key and the remedy."""
        for name in self.metrics:
            if name not in metric_names() and not path_of(name, kind="metrics"):
                known = f"{', '.join([*metric_names(), *brought('metrics')])}, or package.module:function"
                raise ValueError(f"evaluation.metrics has {name!r}, which is unknown; use: {known}")
        if self.style not in ("plain", "think"):
            raise ValueError(f"evaluation.style={self.style!r} is unknown; use plain or think")
        for key, least in (("items", 0), ("max_new_tokens", 1), ("batch_prompts", 1), ("bootstrap", 1), ("samples", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"evaluation.{key}={getattr(self, key)} must be at least {least}")
