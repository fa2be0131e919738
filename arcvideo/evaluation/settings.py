"""Settings of evaluation. No torch here: settings are checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

METRICS = (
    "transcript_token_error",
    "speech_qa",
    "speech_qa_audio_zeroed",
    "mcq_accuracy",
    "grounding_miou",
    "grounding_miou_constant",
    "format_valid",
    "summary_f1",
)
"""Every metric name there is, in the order of the table."""
ON_REQUEST = ("summary_f1",)
"""Not measured unless named: summaries are the longest answers."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured on held-out clips after a stage."""

    shards: str = ""
    """Held-out tar files: a path with {000..011} braces or * globs; empty skips evaluation."""
    metrics: list[str] = field(default_factory=lambda: [name for name in METRICS if name not in ON_REQUEST])
    """Which of `METRICS` to report; one without items in the shards is left out."""
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
            if name not in METRICS:
                raise ValueError(f"evaluation.metrics has {name!r}, which is unknown; use: {', '.join(METRICS)}")
        if self.style not in ("plain", "think"):
            raise ValueError(f"evaluation.style={self.style!r} is unknown; use plain or think")
        for key, least in (("items", 0), ("max_new_tokens", 1), ("batch_prompts", 1), ("bootstrap", 1), ("samples", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"evaluation.{key}={getattr(self, key)} must be at least {least}")
