"""Settings as `arcvideo.train` composes them."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from arcvideo.config import CONF_DIR, RunConfig, as_overrides, override_problems, typed


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return compose("config", overrides=as_overrides(overrides))


def settings(*overrides: str) -> RunConfig:
    """As `arcvideo.train` makes them."""
    assert override_problems(overrides) == []
    return typed(composed(*overrides))
