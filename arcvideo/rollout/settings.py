"""Settings of sampling. No torch here: settings are checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

from arcvideo.objectives.settings import DECODE, GrpoSettings


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
    stop: list[str] = field(default_factory=list)
    """Texts that end a completion, besides the end token; they stay in it."""
    decode: str = "dynamic"
    """dynamic: rows that finish leave the batch. static: shapes never change. cuda_graph: static, replayed on a GPU."""

    def __post_init__(self) -> None:
        """Check values."""
        if self.max_new_tokens < 1 or self.batch_prompts < 1 or self.top_k < 0:
            raise ValueError(f"max_new_tokens and batch_prompts must be at least 1, top_k at least 0: {self}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature must not be negative and top_p must be in (0, 1]: {self}")
        if self.decode not in DECODE:
            raise ValueError(f"decode={self.decode!r} is unknown; use one of {', '.join(DECODE)}")
        if not all(self.stop):
            raise ValueError("stop has an empty text: every completion would end at once")


def grpo_sampling(settings: GrpoSettings) -> Sampling:
    """The sampling of a GRPO stage."""
    return Sampling(
        max_new_tokens=settings.max_completion_length,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        batch_prompts=settings.num_prompts,
        stop=list(settings.stop),
        decode=settings.decode,
    )
