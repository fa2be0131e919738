"""Where a stage starts from: its parent stage's export, the base weights, or a folder the user names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arcvideo.lineage.identity import folder_digest
from arcvideo.lineage.manifest import EXPORT_NAME, Manifest, finished
from arcvideo.lineage.started import STARTED_NAME
from arcvideo.seals import Damaged, check, check_sizes, digest_of

BASE = "base"
"""Parent name of a stage that starts from the base weights."""
WEIGHTS = ("*.safetensors", "*.bin")
"""Names of the files of weights."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The weights a stage starts from."""

    path: Path
    """Folder with config.json and safetensors."""
    identity: str
    """Identity of the stage that made them; digest of the files when no stage did."""
    manifest: Manifest | None = None
    """Of that stage, if a stage made them."""

    @property
    def weights(self) -> str:
        """Digest of the files of `path`: as the stage that made them sealed them, else as they are."""
        return digest_of(self.manifest.exported) if self.manifest else folder_digest(self.path)

    def verify(self) -> None:
        """Compare every byte of the weights with what the stage that made them has written.

        Raises:
            ValueError: a file is damaged; the message says which, and what to do.
        """
        if self.manifest is not None:
            _compare(self.path, manifest=self.manifest, every_byte=True)


def checkpoint_folder(path: Path) -> Path:
    """Return the weights of a checkpoint: the export of a stage's folder, or the folder itself.

    Raises:
        ValueError: a folder without weights.
    """
    if (export := _export_in(path)) is not None:
        return export
    # One with a configuration is somebody's model: whoever loads it says what it lacks.
    described = (path / "config.json").is_file()
    if path.is_dir() and not described and not any(next(path.glob(name), None) for name in WEIGHTS):
        stages = sorted(file.parent.parent.name for file in path.glob(f"*/{EXPORT_NAME}/config.json"))
        if stages:
            raise ValueError(f"checkpoint={path}: holds several stages; name one: {path / stages[-1]}"
                             + (f" (or {', '.join(stages[:-1])})" if stages[:-1] else ""))  # fmt: skip
        unfinished = (path / STARTED_NAME).is_file() or (path / "checkpoints").is_dir()
        more = ": this stage is not finished, its export is written at its end" if unfinished else ""
        raise ValueError(f"checkpoint={path}: no weights there ({' or '.join(WEIGHTS)}){more}")
    return path


def _export_in(folder: Path) -> Path | None:
    """Return the export in a stage's folder."""
    export = folder / EXPORT_NAME
    return export if (export / "config.json").is_file() else None


def resolve_parent(
    *,
    run_dir: Path,
    stage: str,
    parent: str,
    base: Path | None = None,
    override: Path | None = None,
    make: str = "",
) -> Parent:
    """Return where `stage` starts from.

    Args:
        run_dir: folder of the pipeline, with one folder a stage.
        stage: name of the stage that asks.
        parent: name of its parent stage, or `base`.
        base: folder of the base weights.
        override: a folder of weights to start from instead, e.g. an export elsewhere, or a stage's folder.
        make: the command that trains the parent, for messages.

    Raises:
        ValueError: the parent is not finished, or its weights are not there; the message says what to run.
    """
    if override is not None:
        return _weights(override, what=f"parent={override}")
    if parent == BASE:
        if base is None:
            raise ValueError(f"stage {stage} starts from the base weights: set base=<folder>")
        make = f"python -m arcvideo.synthetic.base --data <folder of shards> --out {base}"
        return _weights(
            base, what=f"base={base}", remedy=f"; give another base=<folder>, or for TinyShorts run `{make}`"
        )
    folder = run_dir / parent
    manifest = finished(folder)
    make = make or f"python -m arcvideo.train stage={parent} run_dir={run_dir}"
    remedy = f"run `{make}`, or give parent=<folder of weights>"
    if manifest is None:
        state = "has not finished" if folder.exists() else "has not run"
        raise ValueError(f"stage {stage} needs {parent}, which {state} in {run_dir}: {remedy}")
    export = folder / EXPORT_NAME
    if not (export / "config.json").exists():
        raise ValueError(f"stage {stage} needs the export of {parent}, but {export} is gone: {remedy}")
    _compare(export, manifest=manifest)
    return Parent(path=export, identity=manifest.identity, manifest=manifest)


def _weights(folder: Path, *, what: str, remedy: str = "") -> Parent:
    if not (folder / "config.json").exists():
        folder = _export_in(folder) or folder
    if not (folder / "config.json").exists():
        raise ValueError(f"{what} is not a folder of weights: no config.json there{remedy}")
    manifest = _maker(folder)
    if manifest is not None:
        _compare(folder, manifest=manifest)
    return Parent(path=folder, identity=manifest.identity if manifest else folder_digest(folder), manifest=manifest)


def _maker(folder: Path) -> Manifest | None:
    """Return the manifest beside an export; None for weights that no stage of this version made."""
    try:
        return finished(folder.parent) if folder.name == EXPORT_NAME else None
    except ValueError:
        return None


def _compare(export: Path, *, manifest: Manifest, every_byte: bool = False) -> None:
    compare = check if every_byte else check_sizes
    try:
        compare(export, manifest.exported)
    except (Damaged, OSError) as error:
        raise ValueError(
            f"the export of {manifest.stage} in {export} is damaged: {error}. Restore that file; or remove "
            f"{export.parent} and run stage {manifest.stage} again; or, if the change is meant, copy {export} to a "
            "folder of its own and give parent=<that folder>"
        ) from error
