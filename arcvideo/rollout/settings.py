"""Settings of sampling. No torch here: settings are checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from arcvideo.objectives.settings import GrpoSettings


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn."""

    max_new_tokens: int = 1024
    """Tokens after which a completion is cut off."""
    temperature: float = 1.0
    """0 decodes greedily; log-probabilities are then those at temperature 1."""
    top_p: float = 1.0
    """Nucleus sampling; 1.0 keeps all tokens."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 keeps all."""
    batch_prompts: int = 64
    """Prompts decoded together (times num_generations rows)."""

    def __post_init__(self) -> None:
        """Check values."""
        if self.max_new_tokens < 1 or self.batch_prompts < 1 or self.top_k < 0:
            raise ValueError(f"max_new_tokens and batch_prompts must be at least 1, top_k at least 0: {self}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature must not be negative and top_p must be in (0, 1]: {self}")


def grpo_sampling(settings: GrpoSettings) -> Sampling:
    """The sampling of a GRPO stage."""
    return Sampling(
        max_new_tokens=settings.max_completion_length,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        batch_prompts=settings.num_prompts,
    )
