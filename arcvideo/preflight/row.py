"""The shape of the packed row that a stage's step is made of. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from arcvideo.composing.config import RunConfig

ROOM = 256
"""Tokens that a question may take behind a clip of full length."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One packed row: families of a clip and what follows it."""

    frames: int
    """Pictures of the clip, one a second; 0 for text alone."""
    text: int
    """Tokens of the prompt behind the clip."""
    branches: tuple[int, ...]
    """Tokens of each continuation: answers of SFT, completions of a group, the two of a pair; none: the row is one
    segment, supervised at its end."""
    targets: int
    """Supervised tokens of a family, over all its continuations."""
    families: int = 1
    """How often all this stands in the row."""

    def tokens(self, config: RunConfig) -> int:
        """Of the row."""
        family = 1 + config.layout.placeholders(self.frames) + self.text + sum(self.branches)
        return self.families * family


def fullest_row(config: RunConfig, *, targets: float = 0.1, longest: int = 0, clips: bool = True) -> Row:
    """Return the row of a stage that holds most: as many frames as a clip may have, and the whole budget.

    Args:
        config: of the stage.
        targets: supervised tokens per token of a pack; a group's completions are supervised whole.
        longest: tokens of the longest prompt of a sampled stage; 0 for a clip of full length with its question.
        clips: whether there are any.
    """
    each, most = config.layout.tokens_per_frame, config.layout.max_frames if clips else 0
    budget = config.data.token_budget
    if config.objective.sampled:
        grpo = config.grpo
        answers = (grpo.max_completion_length,) * grpo.num_generations
        frames = max(min(most, (longest - 1 - ROOM) // each), 0) if longest else most
        text = longest - 1 - frames * each if longest else ROOM
        return Row(frames=frames, text=text, branches=answers, targets=sum(answers), families=grpo.prompts_per_batch)
    frames = max(min(most, (budget - 1 - ROOM) // each), 0)
    rest = budget - 1 - frames * each
    supervised = max(int(budget * targets), 1)
    if config.objective.paired:
        pair = (rest // 4, rest // 4)
        return Row(frames=frames, text=rest - sum(pair), branches=pair, targets=min(supervised, sum(pair)))
    return Row(frames=frames, text=rest, branches=(), targets=min(supervised, rest - 1))
