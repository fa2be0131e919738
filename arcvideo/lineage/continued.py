"""Going on from a checkpoint of another run, on purpose: which one, and what may differ from that run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcvideo.lineage.identity import config_diff
from arcvideo.lineage.started import newest_checkpoint, read_started
from arcvideo.seals import digest_of

_FIXED = {
    "model": "its tensors have other shapes",
    "stage.train": "it holds weights and optimizer state of what was trained, and of nothing else",
    "lora": "it holds weights and optimizer state of what was trained, and of nothing else",
    "optimizer.name": "its optimizer state belongs to another optimizer",
}
"""Setting -> why a checkpoint of another value is of no use. How the model computes may change."""
_FREE = ("model.activation_checkpointing", "model.attention", "model.compile", "lora.dropout", "lora.alpha")


@dataclass(frozen=True, kw_only=True)
class Continued:
    """The checkpoint of another run that a stage goes on from."""

    path: Path
    """Its folder, `step-N`."""
    step: int
    """Steps it has behind it; steps are counted on from there."""
    identity: str
    """Of the run that wrote it."""
    seal: str
    """Digest of all that it holds."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {"path": str(self.path), "step": self.step, "identity": self.identity, "seal": self.seal}


def continued_from(place: str | Path) -> Continued:
    """Return the checkpoint at a place: a folder `step-N`, or a stage's folder, of which the newest one is taken.

    Raises:
        ValueError: there is none, or its manifest is damaged.
    """
    folder = Path(place)
    if not folder.name.startswith("step-"):
        inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
        newest = newest_checkpoint(inside)
        if newest is None:
            raise ValueError(f"continue_from={place}: no checkpoint there; name a folder step-N, or a stage's folder")
        folder = newest
    try:
        content = json.loads((folder / "manifest.json").read_bytes())
        seal = content.pop("seal")
        if seal != digest_of(content):
            raise ValueError("it was changed after it was written")
        return Continued(path=folder, step=int(content["step"]), identity=str(content["identity"]), seal=str(seal))
    except FileNotFoundError:
        raise ValueError(f"continue_from={place}: {folder} is no checkpoint, it has no manifest.json") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"continue_from={place}: {folder}/manifest.json is damaged: {error}") from None


def continued_seal(config: Mapping[str, Any]) -> str:
    """Return what a stage's identity counts of the checkpoint it goes on from; empty when it starts from its parent."""
    return continued_from(config["continue_from"]).seal if config.get("continue_from") else ""


def continue_problems(
    checkpoint: Continued, *, config: Mapping[str, Any], stage_dir: Path, parent: str
) -> Iterator[str]:
    """Yield what keeps a run from going on from a checkpoint, one sentence each with its reason.

    Args:
        checkpoint: of the other run.
        config: resolved settings of this run.
        stage_dir: where this run writes.
        parent: identity of what this run starts from.
    """
    theirs = checkpoint.path.absolute().parent.parent
    if theirs == stage_dir.absolute():
        yield (
            f"continue_from={checkpoint.path} lies in {stage_dir}, where this run would write: give another "
            "output=NAME, so that nothing is destroyed"
        )
    steps = config["runner"]["steps"]
    if steps <= checkpoint.step:
        yield (
            f"runner.steps={steps} must be above {checkpoint.step}, the steps that continue_from has behind it: "
            "they are counted on"
        )
    try:
        began = read_started(theirs)
    except ValueError as error:
        yield f"continue_from={checkpoint.path}: {error}"
        return
    if began is None:
        yield f"continue_from={checkpoint.path}: {theirs} has no started.json that says what was trained there"
        return
    for key, (old, new) in config_diff(began["config"], config).items():
        fixed = next((name for name in _FIXED if key == name or key.startswith(f"{name}.")), None)
        if fixed is not None and key not in _FREE:
            yield f"{key}={new} cannot change with continue_from, where it is {old}: {_FIXED[fixed]}"
    if began["parent"] != parent:
        yield (
            f"continue_from={checkpoint.path} started from other weights ({began['parent'][:8]}, now {parent[:8]}): "
            "what is frozen comes from there; give parent=DIR with the same weights"
        )
