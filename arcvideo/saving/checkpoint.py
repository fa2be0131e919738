"""Checkpoints: directories `step-N` that exist entirely or not at all.

Written under a temporary name, every file synced, a manifest of sizes and sha256 that carries a digest of itself, then
one rename. Tensors are safetensors, the rest is JSON: nothing that is loaded can run code. Every rank writes its share
of the tensors; rank 0 waits for the others and renames.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arcvideo.seals import Damaged, check, digest_of, forget, remember, seal, sync

FORMAT = 3
_SHARD_BYTES = 2 << 30
_CHUNK_BYTES = 16 << 20
_NAME = re.compile(r"step-(\d+)")
_PART = "part-{}.json"


class CheckpointError(OSError, ValueError):
    """A checkpoint that cannot be written or read; one line that names the file and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk whose manifest was verified."""

    path: Path
    step: int
    identity: str
    state: dict[str, Any]
    """What the runner stored: counters, random states, W&B id."""
    files: tuple[str, ...] = ()
    """What the manifest vouches for; nothing else is read."""
    written: int = 0
    """Which one of its folder it is, in the order of writing, restarts included."""

    def tensors(self, kind: str) -> Mapping[str, Tensor]:
        """Return tensors of `weights` or `optimizer`, read one by one when asked for.

        Raises:
            CheckpointError: a file cannot be opened.
        """
        names = sorted(name for name in self.files if name.startswith(f"{kind}-") and name.endswith(".safetensors"))
        try:
            return _Tensors([self.path / name for name in names])
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"could not read {self.path}: {error}") from error


class _Tensors(Mapping[str, Tensor]):
    def __init__(self, files: list[Path]) -> None:
        self._files = [safe_open(path, framework="pt") for path in files]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 (not a dict)

    def __getitem__(self, name: str) -> Tensor:
        return self._where[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


Named = Sequence[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank writes of a checkpoint."""

    step: int
    """Steps done."""
    identity: str
    """Of the stage run; resuming asks for the same."""
    token: str
    """Of this attempt, the same on all ranks; part of the temporary name."""
    weights: Named
    """This rank's trained tensors: fp32, on the CPU."""
    optimizer: Named
    """This rank's optimizer tensors, likewise."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able; written by rank 0."""
    rank: int = 0
    ranks: int = 1


class CheckpointFolder:
    """The folder of a run's checkpoints."""

    def __init__(self, root: Path, *, keep_last: int = 2, keep_every: int = 0) -> None:
        """Name the folder.

        Args:
            root: made when something is written.
            keep_last: how many of the newest stay.
            keep_every: those of steps divisible by it stay for good; 0 for none.
        """
        self.root, self.keep_last, self.keep_every = root, keep_last, keep_every
        self.kept: Sequence[int] = ()
        """Of the checkpoints of these steps the first that is usable stays, whatever comes behind it: one that could
        not be written takes the place of none."""

    def write(self, share: Share, *, give_up: Event | None = None, patience: float = 1800) -> None:
        """Write this rank's share of `step-N`; rank 0 then completes it and removes what need not be kept.

        Args:
            share: what to write.
            give_up: set by whoever knows that another rank failed; rank 0 stops waiting for it.
            patience: seconds rank 0 waits for the other ranks' shares.

        Raises:
            CheckpointError: the disk is full or broken, or a share never came; older checkpoints are untouched.
        """
        folder = self.root / f"step-{share.step}.tmp-{share.token}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = _write_share(folder, share)
            if share.rank > 0:
                _write_whole(folder / _PART.format(share.rank), files)
                return
            files |= _other_shares(folder, ranks=share.ranks, give_up=give_up or Event(), patience=patience)
            _write_json(folder / "state.json", dict(share.state))
            files["state.json"] = seal(folder / "state.json")
            facts = {"step": share.step, "identity": share.identity, "written": self._next(), "files": files}
            _write_json(folder / "manifest.json", sealed_manifest(facts))
            self._publish(folder, step=share.step, files=files)
        except OSError as error:
            if share.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(
                f"could not write checkpoint step-{share.step} in {self.root} (older ones are untouched): {error}"
            ) from error
        self._remove_old()

    def _publish(self, folder: Path, *, step: int, files: Mapping[str, Mapping[str, Any]]) -> None:
        sync(folder)
        final = self.root / f"step-{step}"
        if final.is_symlink() or final.is_file():  # to a checkpoint that was moved elsewhere, which stays
            final.unlink()
        elif final.exists():
            shutil.rmtree(final)
        os.rename(folder, final)
        sync(self.root)
        for name, fact in files.items():
            remember(final / name, fact["sha256"])

    def _next(self) -> int:
        return max((_written(path) for _, path in self._by_step()), default=-1) + 1

    def _remove_old(self) -> None:
        """Remove all that is older than the `keep_last` newest usable ones.

        Counted in the order of writing and among those that can be resumed: after a restart behind damaged checkpoints
        the step numbers of the new ones are lower, and what cannot be resumed must not push out what can.
        """
        usable, kept = 0, self.first_usable(self.kept)
        for step, path in sorted(self._by_step(), key=lambda pair: (_written(pair[1]), pair[0]), reverse=True):
            if usable < self.keep_last:
                usable += _is_usable(path)
            elif step != kept and (not self.keep_every or step % self.keep_every):
                shutil.rmtree(path, ignore_errors=True)

    def newest(self, *, say: Callable[[str], None] = lambda text: None) -> Checkpoint | None:
        """Return the newest checkpoint whose manifest verifies.

        Args:
            say: is told which newer ones were passed over and why: damaged, or written by another version.

        Raises:
            CheckpointError: one is there but the disk does not let it be read; going on from an older one would throw
                work away.
        """
        for _, path in reversed(self._by_step()):
            try:
                return read_checkpoint(path)
            except Unusable as reason:
                say(f"checkpoint {path} is passed over: {reason}")
        return None

    def first_usable(self, steps: Sequence[int]) -> int | None:
        """Return the first of these steps whose checkpoint can be resumed; None when none can."""
        return next((step for step in steps if _is_usable(self.root / f"step-{step}")), None)

    def at(self, step: int) -> Checkpoint:
        """Return the checkpoint of this step.

        Raises:
            CheckpointError: it is not there, does not verify or cannot be read.
        """
        try:
            return read_checkpoint(self.root / f"step-{step}")
        except Unusable as reason:
            raise CheckpointError(
                f"checkpoint step-{step} in {self.root} cannot be used by this process ({reason}): "
                "is the folder shared by all ranks?"
            ) from None

    def remove_unfinished(self) -> None:
        """Remove what a killed writer left under a temporary name."""
        for path in self.root.glob("step-*.tmp-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _by_step(self) -> list[tuple[int, Path]]:
        saved = [(int(match[1]), path) for path in self.root.glob("step-*") if (match := _NAME.fullmatch(path.name))]
        return sorted(saved)


class Unusable(ValueError):
    """Why a directory is no checkpoint that this version can continue from."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, every byte of it checked against its manifest.

    Raises:
        Unusable: a file is missing, cut, changed or of another version; the message says which.
        CheckpointError: the disk refuses to read.
    """
    forget(path)
    return _checked(path)


def _checked(path: Path) -> Checkpoint:
    """As `read_checkpoint`, but files that this process has written or read, and nobody touched since, are believed."""
    try:
        manifest = _read_manifest(path)
        files = manifest["files"]
        if "state.json" not in files:
            raise Unusable("manifest.json does not vouch for state.json")
        if _NAME.fullmatch(path.name) and path.name != f"step-{manifest['step']}":
            raise Unusable(f"manifest.json is of step {manifest['step']}: the directory was renamed")
        check(path, files)
        state = _parsed(path / "state.json")
        return Checkpoint(
            path=path,
            step=int(manifest["step"]),
            identity=str(manifest["identity"]),
            state=state,
            files=tuple(files),
            written=int(manifest["written"]),
        )
    except Unusable:
        raise
    except Damaged as error:
        raise Unusable(str(error)) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unusable(f"{Path(str(error.filename)).name} is missing") from None
    except OSError as error:  # ahead of ValueError: a CheckpointError is both
        raise CheckpointError(
            f"could not read checkpoint {path}: {error}. Repair the disk or its permissions, or remove that directory "
            "to continue from an older one"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Unusable(f"manifest.json or state.json is damaged ({type(error).__name__}: {error})") from None


def sealed_manifest(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of manifest.json: step, identity, written and files, with the format and a digest over all of
    it.
    """
    content = {"format": FORMAT, **facts}
    return {**content, "seal": digest_of(content)}


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = _parsed(path / "manifest.json")
    if manifest["format"] != FORMAT:
        raise Unusable(f"manifest.json says format {manifest['format']}, this version reads format {FORMAT}")
    seal_of_it = manifest.pop("seal")
    if seal_of_it != digest_of(manifest):
        raise Unusable("manifest.json was changed after it was written")
    return manifest


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits and deep nesting included
        raise Unusable(f"{path.name} is damaged ({type(error).__name__}: {error})") from None


def _written(path: Path) -> int:
    """Return which one of its folder a checkpoint is; -1 when its manifest does not say."""
    try:
        return int(_read_manifest(path)["written"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return -1


def _is_usable(path: Path) -> bool:
    try:
        _checked(path)
    except (Unusable, OSError):
        return False
    return True


def _write_share(folder: Path, share: Share) -> dict[str, dict[str, Any]]:
    files: dict[str, dict[str, Any]] = {}
    for kind, tensors in (("weights", share.weights), ("optimizer", share.optimizer)):
        for number, shard in enumerate(_shards(tensors)):
            name = f"{kind}-{share.rank:04d}-{number:05d}.safetensors"
            files[name] = write_tensors(folder / name, shard)
    return files


def _shards(tensors: Named) -> Iterator[Named]:
    shard: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        shard.append((name, tensor))
        size += tensor.nbytes
        if size >= _SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def write_tensors(path: Path, tensors: Named) -> dict[str, Any]:
    """Write fp32 CPU tensors as safetensors, synced; returns size and sha256.

    In one pass and straight from the tensors' memory. The library's `save_file` first copies everything into Python
    bytes under the interpreter lock, which would stop the training loop that this runs beside.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors:
        assert (tensor.dtype, tensor.device.type, tensor.is_contiguous()) == (torch.float32, "cpu", True), name
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in itertools.chain([len(text).to_bytes(8, "little"), text], _chunks(tensors)):
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    return {"size": 8 + len(text) + offset, "sha256": digest.hexdigest()}


def _chunks(tensors: Named) -> Iterator[Any]:
    for _, tensor in tensors:
        if tensor.numel():
            view = memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            for start in range(0, len(view), _CHUNK_BYTES):
                yield view[start : start + _CHUNK_BYTES]


def _other_shares(folder: Path, *, ranks: int, give_up: Event, patience: float) -> dict[str, dict[str, Any]]:
    files: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + patience
    for rank in range(1, ranks):
        part = folder / _PART.format(rank)
        while not part.exists():
            if give_up.wait(0.01):
                raise OSError(f"the share of rank {rank} did not arrive")
            if time.monotonic() > deadline:
                raise OSError(f"the share of rank {rank} did not arrive within {patience:g} s (runner.hang_seconds)")
        files |= json.loads(part.read_text())
        part.unlink()
    return files


def _write_json(path: Path, value: Any) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _write_whole(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    _write_json(temporary, value)
    os.replace(temporary, path)
