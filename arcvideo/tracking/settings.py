"""Settings of the tracking room. No torch import: a configuration is checked before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from arcvideo.named import brought, find_module, path_of, problem
from arcvideo.structured import nearest

WANDB_MODES = ("disabled", "offline", "online")
MIRRORS = ("mlflow", "swanlab", "trackio")
"""What `logger.mirrors` knows by name; each needs the package of that name."""


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
    mirrors: list[str] = field(default_factory=list)
    """Further loggers: mlflow, swanlab, trackio (each needs its package), an entry point `arcvideo.loggers`, or
    `package.module:Class` in the protocol of `arcvideo.tracking.mirrors:Mirror`."""
    callbacks: list[str] = field(default_factory=list)
    """Code of your own that hears begin, steps, checkpoints, evaluations and the end of a run: an entry point
    `arcvideo.callbacks`, or `package.module:Class` with methods of `arcvideo.tracking.callbacks:Callback`."""


def logger_problems(logger: LoggerSettings) -> list[str]:
    """Return what is wrong with the settings, one sentence each, naming key and remedy."""
    problems = []
    if logger.wandb not in WANDB_MODES:
        problems.append(f"logger.wandb={logger.wandb!r} is unknown: choose one of {', '.join(WANDB_MODES)}")
    for name in logger.mirrors:
        if name in MIRRORS:
            if find_module(name) is None:
                problems.append(f"logger.mirrors={name} needs the package {name}: pip install {name}")
        elif not path_of(name, kind="loggers"):
            choices = [*MIRRORS, *brought("loggers")]
            close = nearest(name, choices)
            problems.append(
                f"logger.mirrors has {name!r}{close}: choose from {', '.join(choices)}, or package.module:Class"
            )
        elif wrong := problem(name, kind="loggers", key="logger.mirrors"):
            problems.append(wrong)
    wrong_calls = (problem(name, kind="callbacks", key="logger.callbacks") for name in logger.callbacks)
    return problems + [wrong for wrong in wrong_calls if wrong]
