"""Settings of the tracking room. No torch import: a configuration is checked before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

WANDB_MODES = ("disabled", "offline", "online")


@dataclass(frozen=True, kw_only=True)
class LoggerSettings:
    """The optional mirrors of metrics.jsonl: Weights & Biases and TensorBoard."""

    wandb: str = "disabled"
    """disabled, offline (files only) or online."""
    project: str = "arcvideo"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; None uses the account's default."""
    tags: list[str] = field(default_factory=list)
    """W&B tags."""
    tensorboard: bool = False
    """Write TensorBoard events too; needs the package tensorboard."""


def logger_problems(logger: LoggerSettings) -> list[str]:
    """Return what is wrong with the settings, one sentence each, naming key and remedy."""
    if logger.wandb in WANDB_MODES:
        return []
    return [f"logger.wandb={logger.wandb!r} is unknown: choose one of {', '.join(WANDB_MODES)}"]
