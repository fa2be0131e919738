"""Settings of evaluation. No torch here: settings are checked before torch is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from arcvideo.named import brought, path_of
from arcvideo.tasks import TASKS

LOSS = "loss"
"""The held-out loss, as `evaluation.optimize` and, behind `eval/`, metrics.jsonl name it."""
FORM = "format_valid"
"""The figure of all tasks: the share of answers that are one think and one answer block."""


_TAGGED = re.compile(r"(?P<name>[^\[\]]+)\[(?P<tag>[^\[\]]+)\]")


def part_of(metric: str) -> tuple[str, str]:
    """Return a figure's name and the tag of the items it is over: `mcq_accuracy[needs:audio]`; no tag takes all."""
    found = _TAGGED.fullmatch(metric)
    return (found["name"], found["tag"]) if found else (metric, "")


def is_metric(metric: str) -> bool:
    """Return whether there is such a figure, with or without a tag behind it; nothing of a user's is imported."""
    name, _ = part_of(metric)
    return name in metric_names() or bool(path_of(name, kind="metrics"))


def metric_names(*, on_request: bool = True) -> tuple[str, ...]:
    """Return every metric name there is, in the order of the table: those that tasks bring, then the form.

    Args:
        on_request: also those that are not measured unless they are named.
    """
    measures = [measure for task in TASKS.values() for measure in task.measures]
    return (*(measure.name for measure in measures if on_request or not measure.on_request), FORM)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured on held-out clips after a stage, and during it."""

    shards: str | None = ""
    """Held-out tar files: a path with {000..011} braces or * globs; empty or null skips evaluation."""
    metrics: list[str] = field(default_factory=lambda: list(metric_names(on_request=False)))
    """Which figures to report: those that tasks bring, or your own (entry points `arcvideo.metrics`, or
    `package.module:function`) of an answer and its truth; one without items in the shards is left out. A tag in
    brackets takes the items of that tag alone: `mcq_accuracy[needs:audio]`. An empty list skips them."""
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
    optimize: str = ""
    """Figure that a stage run returns to Hydra's sweepers, and by which `best` and `patience` judge: one of `metrics`,
    `loss` (held out, with `every`), or for sweeps `train/loss` of the last step. By default mcq_accuracy if that is
    measured, else the first of `metrics`, else a loss."""
    every: int = 0
    """Measure during training, too, after every so many steps and after the last one; 0 measures after it only."""
    loss_packs: int = 64
    """Packed rows of held-out answers that the loss during training is measured on, the same ones each time; 0 leaves
    the held-out loss out, as do stages that train on completions or pairs."""
    best: bool = False
    """Export the weights that measured best by `optimize` in place of the last; their checkpoint is kept."""
    patience: int = 0
    """Stop training when so many measurements in a row were not better than the best one; 0 trains to the end."""

    def __post_init__(self) -> None:
        """Check values; the message names the key and the remedy."""
        object.__setattr__(self, "shards", self.shards or "")
        for name in self.metrics:
            if not is_metric(name):
                known = f"{', '.join([*metric_names(), *brought('metrics')])}, or package.module:function"
                raise ValueError(f"evaluation.metrics has {name!r}, which is unknown; use: {known}")
        if self.style not in ("plain", "think"):
            raise ValueError(f"evaluation.style={self.style!r} is unknown; use plain or think")
        for key, least in (("items", 0), ("max_new_tokens", 1), ("batch_prompts", 1), ("bootstrap", 1), ("samples", 0),
                           ("every", 0), ("loss_packs", 0), ("patience", 0)):  # fmt: skip
            if getattr(self, key) < least:
                raise ValueError(f"evaluation.{key}={getattr(self, key)} must be at least {least}")
        if self.every and not self.shards:
            raise ValueError(f"evaluation.every={self.every} measures nothing: evaluation.shards names held-out items")
        if self.chooses and not self.every:
            key = "best" if self.best else "patience"
            raise ValueError(f"evaluation.{key} judges by what is measured during training: set evaluation.every")

    @property
    def held_out(self) -> str:
        """The held-out shards; empty without any."""
        return self.shards or ""

    @property
    def measures(self) -> bool:
        """Whether a finished stage is measured."""
        return bool(self.shards and self.metrics)

    @property
    def chooses(self) -> bool:
        """Whether what is measured decides which weights come out."""
        return self.best or self.patience > 0

    @property
    def optimized(self) -> str:
        """The figure behind `optimize`, its default resolved."""
        if self.optimize:
            return self.optimize
        if not self.measures:
            return LOSS if self.chooses else "train/loss"
        return "mcq_accuracy" if "mcq_accuracy" in self.metrics else self.metrics[0]
