"""Check that files are as they were written: `arcvideo verify PATH ...`.

PATH is anything that was written here, or a folder that holds such things: a run folder, a stage, a checkpoint, an
export, an adapter, base weights, a shard or a folder of them, an index, a feature store, a frame cache, a journal.
Nothing is changed, nothing is loaded into a model, no code of a stranger's folder runs.

Prints a line for each damage: the file, what is wrong with it, and what to do; then how much was checked. What carries
no seal (files of other programs, of older versions) is counted, and named with --all.

Exit status: 0 all is whole, 1 something is damaged, 2 a path is not there.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from arcvideo import seals
from arcvideo.decoding.cache import check_cached
from arcvideo.evaluation.predictions import read_predictions
from arcvideo.files import error_line, read_lines
from arcvideo.lineage.manifest import EXPORT_NAME, MANIFEST_NAME, read_manifest
from arcvideo.lineage.parents import Parent
from arcvideo.lineage.started import STARTED_NAME, read_started
from arcvideo.measuring.folder import PREDICTIONS
from arcvideo.media.read import media_digest
from arcvideo.model.towers.features import check_features
from arcvideo.places import words_from_home
from arcvideo.processes.command import as_command
from arcvideo.rejection.journal import read_answers
from arcvideo.saving.checkpoint import read_checkpoint
from arcvideo.shards.columns import CONTENT
from arcvideo.shards.index import ShardIndex, index_folder, open_index
from arcvideo.shards.members import read_at, read_groups
from arcvideo.shards.seal import DATASET, LEDGER, PRINTS, unsealed, vouched

T = TypeVar("T")
_AGAIN = "remove it, it is made again when it is needed"
_RESTORE = "restore it from a copy, or make it again"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that is not as it was written."""

    path: Path
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}".replace("\n", "\\n")  # names of files may hold one


@dataclass(kw_only=True)
class Findings:
    """What a check has found."""

    damages: list[Damage] = field(default_factory=list)
    whole: dict[str, int] = field(default_factory=dict)
    """Kind -> how many of it are whole."""
    unsealed: list[Path] = field(default_factory=list)
    """Files that nobody vouches for."""

    def look(self, kind: str, path: Path, check: Callable[[], T], *, remedy: str) -> T | None:
        """Run a check, which raises ValueError or OSError for damage; returns what it read, None for damage."""
        try:
            read = check()
        except (ValueError, OSError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            # The place stands before it already.
            what = " ".join(str(error).replace(f"{path}: ", "").replace(f"{path} ", "").split())
            self.damages.append(Damage(path=path, what=what.split("; ")[0], remedy=remedy))
            return None
        self.whole[kind] = self.whole.get(kind, 0) + 1
        return read


def verify(path: Path) -> Findings:
    """Check a file, or everything below a folder.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    findings = Findings()
    if path.is_file():
        _file(path, findings, vouched=set())
        return findings
    waiting = [path] if path.is_dir() else []  # as deep as anybody likes
    while waiting:
        folder = waiting.pop()
        try:
            waiting += reversed(_folder(folder, findings))
        except OSError as error:
            remedy = "repair the disk or its permissions"
            findings.damages.append(Damage(path=folder, what=str(error.strerror), remedy=remedy))
    return findings


def _folder(folder: Path, findings: Findings) -> list[Path]:
    """Check what a folder is, then its files; a file that was compared with a seal is not looked at again. Returns the
    folders in it that are to be checked.

    Raises:
        OSError: nobody may look into it.
    """
    folders: list[Path] = []
    vouched: set[Path] = set()
    if folder.name.endswith((".index", PRINTS, "-fingerprints")):
        _check_index(folder, findings)
        return folders
    if folder.name.startswith("step-") and (folder / "manifest.json").exists() and folder.parent.name == "checkpoints":
        findings.look("checkpoint", folder, lambda: read_checkpoint(folder), remedy="remove it, a run passes it over")
        return folders
    if (folder / MANIFEST_NAME).exists():
        vouched |= _check_stage(folder, findings)
    if (folder / seals.SUMS).exists():
        vouched |= _check_sums(folder, findings)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.is_symlink():
            continue  # what it names is somebody else's folder
        if entry.is_dir():
            folders.append(path)
        elif entry.is_file() and path not in vouched:  # reading a pipe would wait for ever
            _file(path, findings, vouched=vouched)
    return folders


def _check_stage(folder: Path, findings: Findings) -> set[Path]:
    """The manifest of a stage and the export that it vouches for; returns the files that it names."""
    path, export = folder / MANIFEST_NAME, folder / EXPORT_NAME
    manifest = findings.look(
        "manifest", path, lambda: read_manifest(folder), remedy="restore it, or train the stage again"
    )
    if manifest is not None and manifest.exported:
        parent = Parent(path=export, identity=manifest.identity, manifest=manifest)
        seals.forget(export)
        remedy = f"restore that file, or remove {folder} and train the stage again"
        findings.look("export", export, parent.verify, remedy=remedy)
    journals = manifest.journals if manifest is not None else {}
    for name, fact in journals.items():
        _check_rows(folder / name, findings, seal=fact)
    return {path, *(folder / name for name in journals)}


def _check_rows(path: Path, findings: Findings, *, seal: seals.Seal | None = None) -> None:
    """A file of rows: each row, and with the seal of its stage that none is gone."""

    def whole() -> None:
        if path.exists():
            if path.name == PREDICTIONS:
                list(read_predictions(path))
            else:
                read_lines(path)
        if seal is not None:
            seals.check_grown(path.parent, {path.name: seal})

    remedy = "measure the stage again" if path.name == PREDICTIONS else "repair or delete the line"
    if seal is not None and path.name != PREDICTIONS:
        remedy = "restore it from a copy; the weights do not depend on it"
    findings.look("file of rows", path, whole, remedy=remedy)


def _check_sums(folder: Path, findings: Findings) -> set[Path]:
    """A folder with SHA256SUMS, each file read anew; returns the files that it vouches for."""
    sums = folder / seals.SUMS
    remedy = "restore it, or delete it when the change is meant"
    names = findings.look("list of digests", sums, lambda: seals.read_sums(sums), remedy=remedy)
    if names is None:
        return {sums}
    seals.forget(folder)
    for name, sha256 in names.items():
        remedy = f"restore it, or delete {sums} when the change is meant"
        findings.look("file of weights", folder / name, lambda n=name, s=sha256: _compare(folder, n, s), remedy=remedy)  # type: ignore[misc]
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in names:
            what = f"is not named in {seals.SUMS}, as all weights of a folder are"
            findings.damages.append(Damage(path=path, what=what, remedy=f"restore {seals.SUMS}, or remove the file"))
    return {sums, *(folder / name for name in names)}


def _compare(folder: Path, name: str, sha256: str) -> None:
    size = (folder / name).stat().st_size if (folder / name).exists() else 0
    seals.check(folder, {name: {"size": size, "sha256": sha256}})


def _file(path: Path, findings: Findings, *, vouched: set[Path]) -> None:
    """Check a file by what its name says it is."""
    name = path.name
    if name.endswith(".sha256"):
        _check_presence(path.with_suffix(""), by=path, findings=findings)
    if name.endswith((".lock", ".word", ".partial", ".sha256")) or name == ".gitignore":
        return
    if name.endswith(".tar"):
        _check_shard(path, findings)
    elif name.endswith(".clip"):
        findings.look("cached clip", path, lambda: check_cached(path), remedy=_AGAIN)
    elif name.endswith(".safetensors") and _is_features(path):
        if findings.look("tower outputs", path, lambda: check_features(path), remedy=_AGAIN) is False:
            findings.unsealed.append(path)
    elif name == STARTED_NAME:
        findings.look(
            "record of a start", path, lambda: read_started(path.parent), remedy="remove it, it is written anew"
        )
    elif name.endswith(".answers.jsonl"):
        findings.look("journal", path, lambda: read_answers(path), remedy="delete the line, it is drawn again")
    elif name.endswith(".jsonl"):
        _check_rows(path, findings)
        if name.endswith(LEDGER):
            _check_ledger(path, findings)
    elif name.endswith(".json"):
        content = findings.look("JSON file", path, lambda: _json(path), remedy=_RESTORE)
        if not seals.sidecar(path).exists() and not (isinstance(content, dict) and "seal" in content):
            findings.unsealed.append(path)
        if name == DATASET and isinstance(content, dict) and isinstance(content.get("shards"), dict):
            for shard in content["shards"]:
                _check_presence(path.with_name(Path(shard).name or name), by=path, findings=findings)
    else:
        findings.unsealed.append(path)


def _check_presence(path: Path, *, by: Path, findings: Findings) -> None:
    """Whether a file is there that another one vouches for."""
    if not os.path.exists(path):  # nor is one whose name no file can have
        remedy = f"{_RESTORE}; where its absence is meant, delete {by.name}"
        findings.damages.append(Damage(path=path, what=f"is missing, though {by.name} tells of it", remedy=remedy))


def _check_ledger(path: Path, findings: Findings) -> None:
    """The shards of an import against the list of them."""
    with suppress(ValueError, OSError):  # told already
        parts = read_lines(path, fields={})[1:]
        listed = {part.get("shard") for part in parts}
        for shard in sorted(path.parent.glob(f"{glob.escape(path.name.removesuffix(LEDGER))}-{'[0-9]' * 6}.tar")):
            if shard.name not in listed:
                remedy = f"restore {path.name}: its end is gone; or remove the shard, the import makes it again"
                findings.damages.append(Damage(path=shard, what=f"is not in {path.name}", remedy=remedy))
        for part in parts:
            shard = path.with_name(Path(str(part.get("shard"))).name or path.name)
            said = vouched(shard) if os.path.exists(shard) else None
            if not os.path.exists(shard):
                _check_presence(shard, by=path, findings=findings)
            elif said is not None and said[1] != part.get("sha256"):
                remedy = "restore the one or the other; an import goes on by this list"
                findings.damages.append(Damage(path=path, what=f"is not the list of {shard.name}", remedy=remedy))


def _json(path: Path) -> Any:
    content = json.loads(seals.read_sealed(path))
    if isinstance(content, dict):
        seals.check_own_seal(content, path=path)
    return content


def _is_features(path: Path) -> bool:
    return len(path.stem) == 64 and path.parent.name == path.stem[:2]


def _check_shard(path: Path, findings: Findings) -> None:
    """A tar: against the digest beside it, or against its index, or as far as its own headers tell."""
    index = None
    if seals.sidecar(path).exists() or vouched(path) is not None:

        def whole() -> None:
            seals.forget(path.parent)
            side, said = vouched(path) or (path, "")
            try:
                seals.check(path.parent, {path.name: {"size": path.stat().st_size, "sha256": said}})
            except seals.Damaged:
                raise ValueError(f"is not the file of {side.name}") from None

        findings.look("shard", path, whole, remedy=_RESTORE)
    else:
        index = open_index(path) if index_folder(path).exists() else None
        if index is None:
            findings.unsealed.append(path)
    try:
        problems = [problem for problem in read_groups(path)[1] if problem.stage == "shard"]
    except (ValueError, OSError) as error:
        findings.damages.append(Damage(path=path, what=f"cannot be read ({error})", remedy=_RESTORE))
        return
    for problem in problems:
        findings.damages.append(Damage(path=path, what=f"{problem.reason}: {problem.detail}", remedy=_RESTORE))
    if index is not None:
        opened = index
        findings.look("shard", path, lambda: _check_content(opened), remedy=_RESTORE)


def _check_content(index: ShardIndex) -> None:
    """Raise ValueError when records or media of a shard are not those that were indexed."""
    changed = [key for key, is_whole in _media(index) if not is_whole]
    if changed:
        raise ValueError(f"{len(changed)} clips are not as they were indexed, the first is {changed[0]}")
    content = hashlib.sha256()
    for clip in index.clips:
        text = read_at(index.shard, offset=int(clip["json_offset"]), size=int(clip["json_size"]))
        content.update(hashlib.sha256(text).digest())
    content.update(json.dumps([CONTENT, index.tasks, index.tagsets]).encode())
    for array in (index.clips, index.items, index.keys, index.parts):
        content.update(np.asarray(array).tobytes())
    if content.hexdigest() != index.digest:
        raise ValueError("its records are not those that were indexed")


def _media(index: ShardIndex) -> Iterator[tuple[str, bool]]:
    for row in range(len(index.clips)):
        for part, medium in enumerate(index.media(row)):
            data, sound = index.media_bytes(row, part=part)
            yield index.key(row), media_digest(data, sidecar_audio=sound) == bytes(medium["digest"])


def _check_index(folder: Path, findings: Findings) -> None:
    """An index and the token counts in it, or fingerprints, every byte."""
    seals.forget(folder)
    names = ("meta.json", *(path.name for path in sorted(folder.glob("*.seal.json"))))
    for name in names:

        def whole(path: Path = folder / name) -> None:
            files = unsealed(path.read_text(encoding="utf-8"), name=path)["files"]
            seals.check(folder, files)

        kind = "fingerprints" if folder.name.endswith("fingerprints") else "index"
        findings.look(kind if name == "meta.json" else "table of token counts", folder / name, whole, remedy=_AGAIN)


def main(words: Sequence[str] | None = None) -> int:
    """Check the named paths; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="arcvideo verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--all", action="store_true", help="name the files that nobody vouches for")
    options = parser.parse_args(words_from_home(words))
    damages = 0
    for path in options.paths:
        try:
            findings = verify(path)
        except OSError as error:
            print(f"error: {error_line(error)}", file=sys.stderr)
            return 2
        for damage in findings.damages:
            print(damage)
        counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(findings.whole.items())) or "nothing"
        print(
            f"{path}: whole: {counts}; damaged: {len(findings.damages)}; without a seal: {len(findings.unsealed)} files"
        )
        if options.all:
            print("\n".join(f"  without a seal: {file}" for file in findings.unsealed))
        damages += len(findings.damages)
    return 1 if damages else 0


if __name__ == "__main__":
    as_command(main)
