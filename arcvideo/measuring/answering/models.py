"""What can be measured: a checkpoint of ours, a video model of transformers, or a model behind an endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from arcvideo.evaluation.answers import Answer
from arcvideo.layout import MediaLayout
from arcvideo.lineage.parents import checkpoint_folder
from arcvideo.measuring.answering.endpoint import Endpoint
from arcvideo.measuring.answering.hub import HubModel
from arcvideo.measuring.answering.ours import Ours
from arcvideo.measuring.questions import MeasuredQuestion
from arcvideo.measuring.read import Read
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.structured import SettingsError

OWN_TYPES = ("arc_hunyuan_video", "hunyuan")
"""`model_type` of our exports and of the released configuration; a directory without config.json is a released one."""


class Measured(Protocol):
    """A model that answers questions about clips."""

    style: str
    """plain or think."""

    @property
    def layout(self) -> MediaLayout:
        """How clips are decoded for it."""
        ...

    @property
    def origin(self) -> dict[str, Any]:
        """What decides its answers, besides what is asked."""
        ...

    def load(self) -> None:
        """Get ready; called once, after the questions are known to be good."""

    def prompts_digest(self, read: Read) -> str:
        """Return a digest of everything that is written to it about a clip."""
        ...

    def first_prompt(self, question: MeasuredQuestion) -> str:
        """Return what a question looks like to it."""
        ...

    def ask(self, clips: Iterable[Read]) -> Iterator[tuple[list[Answer], dict[str, float]]]:
        """Yield the answers, some clips at a time, with the seconds they took."""
        ...


def open_model(settings: EvaluateSettings, *, device: torch.device) -> Measured:
    """Return what the settings name; its weights are not loaded yet.

    Raises:
        ValueError: a directory that is no checkpoint that can be measured.
    """
    if settings.endpoint:
        return Endpoint(settings)
    folder = checkpoint_folder(Path(settings.checkpoint))
    kind = model_type(folder)
    if kind is None or kind in OWN_TYPES:
        return Ours(settings, device=device)
    return HubModel(settings, folder=folder, device=device)


def model_type(folder: Path) -> str | None:
    """Return what config.json says the model is; None without such a file.

    Raises:
        ValueError: the file cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise SettingsError(f"checkpoint={folder}: config.json is damaged: {error}") from None
    return None if name is None else str(name)
