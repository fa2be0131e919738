"""Checkpoints: directories `step-N` that exist entirely or not at all.

Written under a temporary name, every file synced, a manifest of sizes and sha256, then one rename. Tensors are
safetensors, the rest is JSON: nothing that is loaded can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 1
_SHARD_BYTES = 2 << 30
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk whose manifest was verified."""

    path: Path
    step: int
    identity: str
    state: dict[str, Any]
    """What the runner stored: counters, random states, W&B id."""

    def tensors(self, kind: str) -> Mapping[str, Tensor]:
        """Tensors of `weights` or `optimizer`, read one by one when asked for."""
        return _Tensors(sorted(self.path.glob(f"{kind}-*.safetensors")))


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


class CheckpointFolder:
    """The folder of a run's checkpoints."""

    def __init__(self, root: Path, *, keep_last: int = 2) -> None:
        self.root = root
        self.keep_last = keep_last

    def write(
        self,
        *,
        step: int,
        identity: str,
        weights: Iterable[tuple[str, Tensor]],
        optimizer: Iterable[tuple[str, Tensor]],
        state: Mapping[str, Any],
        writes: bool = True,
    ) -> None:
        """Write `step-N`, then remove what `keep_last` no longer keeps.

        Args:
            step: steps done.
            identity: of the stage run; resuming asks for the same.
            weights: trained tensors; consumed on every rank, since gathering them takes all ranks.
            optimizer: optimizer tensors, likewise.
            state: JSON-able.
            writes: False on all ranks but the first.

        Raises:
            OSError: the disk is full or broken; older checkpoints are untouched.
        """
        if not writes:
            for _ in weights:
                pass
            for _ in optimizer:
                pass
            return
        self.root.mkdir(parents=True, exist_ok=True)
        self.remove_unfinished()
        temporary = self.root / f"step-{step}.tmp-{uuid.uuid4().hex[:8]}"
        try:
            temporary.mkdir()
            names = [*_write_shards(temporary, "weights", weights), *_write_shards(temporary, "optimizer", optimizer)]
            (temporary / "state.json").write_text(json.dumps(dict(state)))
            files = {name: _seal(temporary / name) for name in [*names, "state.json"]}
            manifest = {"format": FORMAT, "step": step, "identity": identity, "files": files}
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
            _sync(temporary / "manifest.json")
            _sync(temporary)
            final = self.root / f"step-{step}"
            if final.exists():
                shutil.rmtree(final)
            os.rename(temporary, final)
            _sync(self.root)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) or "safetensor" in type(error).__name__.lower():
                raise OSError(
                    f"could not write checkpoint step-{step} in {self.root} (older ones are untouched): {error}"
                ) from error
            raise
        for _, old in self._by_step()[: -self.keep_last]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose manifest verifies; damaged ones are passed over."""
        for _, path in reversed(self._by_step()):
            found = read_checkpoint(path)
            if found is not None:
                return found
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of this step.

        Raises:
            ValueError: it is not there or does not verify.
        """
        found = read_checkpoint(self.root / f"step-{step}")
        if found is None:
            raise ValueError(
                f"checkpoint step-{step} in {self.root} is missing or damaged as seen by this process: "
                "is the folder shared by all ranks?"
            )
        return found

    def remove_unfinished(self) -> None:
        """Remove what a killed writer left under a temporary name."""
        for path in self.root.glob("step-*.tmp-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _by_step(self) -> list[tuple[int, Path]]:
        found = [(int(match[1]), path) for path in self.root.glob("step-*") if (match := _NAME.fullmatch(path.name))]
        return sorted(found)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None when a file is missing, cut or changed."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            return None
        for name, fact in manifest["files"].items():
            file = path / name
            if Path(name).name != name or file.stat().st_size != fact["size"] or _sha256(file) != fact["sha256"]:
                return None
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Checkpoint(path=path, step=int(manifest["step"]), identity=manifest["identity"], state=state)


def _write_shards(folder: Path, kind: str, tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    names: list[str] = []
    shard: dict[str, Tensor] = {}
    size = 0

    def flush() -> None:
        nonlocal shard, size
        if shard:
            names.append(f"{kind}-{len(names):05d}.safetensors")
            save_file(shard, folder / names[-1])
        shard, size = {}, 0

    for name, tensor in tensors:
        shard[name] = tensor.contiguous()
        size += tensor.numel() * tensor.element_size()
        if size >= _SHARD_BYTES:
            flush()
    flush()
    return names


def _seal(path: Path) -> dict[str, Any]:
    _sync(path)
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
