"""Checkpoints of arcvideo as a model of lmms-eval, and ShortVid-Bench as a task there."""

from __future__ import annotations

from typing import Any


def models() -> Any:
    """Return what lmms-eval's entry point `lmms_eval.models` wants: the name of the model and its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="arcvideo", simple_class_path="arcvideo_lmms.models.arcvideo.ArcVideo")
