"""Objectives: from scores of the targets, or their logits, and a Batch to a summed Loss. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from arcvideo.named import brought, imported, path_of


@dataclass(frozen=True, kw_only=True)
class ObjectiveRow:
    """All that the rest of the house has to know of an objective, before its code is loaded."""

    loss: str
    """`module:Class`; built as `Class(settings, **options)` and called as `objective(scores, batch)` if it has `ask`,
    else as `objective(logits, batch)`."""
    settings: str
    """The group of `RunConfig` that the class gets."""
    feed: str
    """What a step trains on. answers: the data's own. pairs: of a chosen and a rejected answer. rollouts: completions
    sampled from the policy; its settings are then those of `grpo`."""
    reference: bool = False
    """Whether log-probabilities under the parent stand beside the batch; settings with beta=0 do without."""

    own_forward: bool = False
    """Of rollouts: whether the class takes old log-probabilities from its own forward while the policy is the one that
    sampled (`sampled_logprobs` beside the batch in place of `old_logprobs`); saves a forward a step."""

    @property
    def sampled(self) -> bool:
        """Whether the policy's own completions are trained on."""
        return self.feed == "rollouts"

    @property
    def paired(self) -> bool:
        """Whether pairs of answers are trained on."""
        return self.feed == "pairs"


OBJECTIVES: dict[str, ObjectiveRow] = {
    "next_token": ObjectiveRow(loss="arcvideo.objectives.next_token:NextToken", settings="next_token", feed="answers"),
    "grpo": ObjectiveRow(
        loss="arcvideo.objectives.grpo:Grpo", settings="grpo", feed="rollouts", reference=True, own_forward=True
    ),
    "dpo": ObjectiveRow(loss="arcvideo.objectives.dpo:Dpo", settings="dpo", feed="pairs", reference=True),
}
"""Name in `stage.objective` -> what it is. The first of each feed stands for a user's own class with that feed."""
FEEDS = tuple(dict.fromkeys(row.feed for row in OBJECTIVES.values()))


def objective_row(name: str, *, feed: str = "") -> ObjectiveRow:
    """Return the row of a name, or one for a user's own `package.module:Class`; nothing is imported.

    Args:
        name: `stage.objective`.
        feed: `stage.feed`, for a class of one's own; by default it trains on answers.

    Raises:
        ValueError: the name or the feed is unknown; the message names key and remedy.
    """
    if name in OBJECTIVES:
        if feed not in ("", OBJECTIVES[name].feed):
            fixed = OBJECTIVES[name].feed
            raise ValueError(f"stage.feed={feed} is for a class of your own; stage.objective={name} trains on {fixed}")
        return OBJECTIVES[name]
    if not path_of(name, kind="objectives"):
        choices = ", ".join([*OBJECTIVES, *brought("objectives")])
        raise ValueError(f"stage.objective={name!r} is unknown: choose one of {choices}, or package.module:Class")
    like = next((row for row in OBJECTIVES.values() if row.feed == (feed or "answers")), None)
    if like is None:
        raise ValueError(f"stage.feed={feed!r} is unknown: choose one of {', '.join(FEEDS)}")
    return replace(like, loss=path_of(name, kind="objectives"), own_forward=False)


def load_objective(name: str) -> Any:
    """Return the class behind a name of `OBJECTIVES`, or behind a user's own `package.module:Class`.

    Raises:
        ValueError: the name is unknown, or its module cannot be imported or has no such class.
    """
    return imported(objective_row(name).loss, what=f"stage.objective={name}")
