"""The manifest: what a finished stage proves about itself. Writing it is the last act of a stage."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcvideo.files import write_whole
from arcvideo.seals import digest_of, seal
from arcvideo.structured import filled

FORMAT = 3
MANIFEST_NAME = "manifest.json"
EXPORT_NAME = "export"
"""Folder inside a stage's folder with the weights that its children start from."""


JOURNALS = ("metrics.jsonl", "rollouts.jsonl", "quarantine.jsonl", "skipped.jsonl")
"""Files of rows that training leaves in a stage's folder."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Proof of one finished stage; docs/manifest.schema.json is its schema."""

    stage: str
    """Its name."""
    identity: str
    """`lineage.identity.identity` of the stage."""
    parent: str
    """Identity of the parent stage, or digest of the base weights."""
    parent_path: str
    """Folder of the weights it started from."""
    parent_weights: str = ""
    """Digest of the bytes it started from: of the files of `parent_path` as they were read."""
    continued: dict[str, Any] = field(default_factory=dict)
    """Path, step, identity and seal of the checkpoint it went on from (`continue_from`); empty without."""
    code: dict[str, str]
    """Module -> digest of the code that decided the weights."""
    data: str
    """Digest of the data."""
    config: dict[str, Any]
    """Resolved settings."""
    config_diff: dict[str, list[Any]] = field(default_factory=dict)
    """Setting -> [parent's value, own value]."""
    seen: dict[str, int] = field(default_factory=dict)
    """Samples trained on, per source."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Samples refused, per source."""
    mixture: dict[str, Any] = field(default_factory=dict)
    """Source -> requested and realised mixture of the stage's steps."""
    frozen_before: dict[str, str] = field(default_factory=dict)
    """Frozen module -> sha256 of its tensors before the first step."""
    frozen_after: dict[str, str] = field(default_factory=dict)
    """The same after the last step."""
    trainable: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the table of modules: module, parameters, trained, lrs (peak learning rates)."""
    liveness: dict[str, Any] = field(default_factory=dict)
    """Findings of the liveness proof."""
    repeatable: bool = False
    """Whether every training step ran on kernels that repeat their sums (runner.deterministic)."""
    steps: int = 0
    """Optimizer steps."""
    skipped: list[int] = field(default_factory=list)
    """Steps refused for non-finite numbers or as spikes."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Last training metrics and evaluation."""
    seconds: float = 0.0
    """Wall time of the stage."""
    exported: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File of the export -> its size and sha256; children compare before they start from it."""
    journals: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File of rows in the folder -> size and sha256 of what stood in it when training ended; rows may come behind."""
    evaluation: str = ""
    """`lineage.identity.evaluation_digest` of how it was measured."""
    format: int = FORMAT
    """Version of this layout."""

    @property
    def evaluated(self) -> dict[str, float]:
        """Metric -> value on held-out questions."""
        return {key.removeprefix("eval/"): value for key, value in self.metrics.items() if key.startswith("eval/")}

    def value(self, name: str) -> float | None:
        """Return a metric by the name that `evaluation.optimize` takes: of the evaluation, or whole, like
        train/loss.
        """
        return self.metrics.get(name if "/" in name else f"eval/{name}")


def sealed_journals(folder: Path) -> dict[str, dict[str, Any]]:
    """Return `Manifest.journals` of a stage whose training has ended."""
    return {name: seal(folder / name) for name in JOURNALS if (folder / name).exists()}


def write_manifest(manifest: Manifest, *, folder: Path) -> Path:
    """Write the manifest so that it is there whole or not at all; returns its path.

    Raises:
        ValueError: a frozen module changed, so the stage is not what it says.
    """
    before, after = manifest.frozen_before, manifest.frozen_after
    changed = sorted(module for module in before.keys() | after.keys() if before.get(module) != after.get(module))
    if changed:
        raise ValueError(
            f"stage {manifest.stage} changed {', '.join(changed)}, which its settings freeze: it is not finished, its "
            "weights must not be used. Look for code that unfreezes parameters after train_only"
        )
    path = folder / MANIFEST_NAME
    content = json.loads(json.dumps(dataclasses.asdict(manifest)))
    write_whole(path, json.dumps(content | {"seal": digest_of(content)}, indent=1, sort_keys=True) + "\n")
    return path


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a stage's folder.

    Raises:
        FileNotFoundError: the stage is not finished.
        ValueError: the file is not one of ours.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {MANIFEST_NAME}: the stage did not finish there")
    names = {item.name for item in dataclasses.fields(Manifest)}
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise _Refused(f"has format {content['format']}, this version reads {FORMAT}: train the stage again")
        if content.pop("seal") != digest_of(content):
            raise _Refused("was changed after it was written: restore it, or delete it and train the stage again")
        return filled(Manifest, {key: value for key, value in content.items() if key in names})
    except _Refused as reason:
        raise ValueError(f"{path} {reason}") from None
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a manifest of a stage ({error}): delete the folder and train the stage again"
        ) from error


class _Refused(Exception):
    """A manifest of ours that is not to be used."""


def finished(folder: Path) -> Manifest | None:
    """Return the manifest when the stage in `folder` is finished, else None."""
    try:
        return read_manifest(folder)
    except FileNotFoundError:
        return None
