"""Settings as `arcvideo.train` composes them."""

from __future__ import annotations

from arcvideo.composing.compose import stage_config
from arcvideo.composing.config import RunConfig


def settings(*overrides: str) -> RunConfig:
    """As `arcvideo.train` makes them."""
    return stage_config(overrides)
