"""A disk cache of frozen tower outputs, keyed by the content of clip and towers."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arcvideo.files import error_line, remove_leftovers
from arcvideo.model.settings import ModelSettings
from arcvideo.types import Media


def feature_key(media: Media) -> str:
    """Return the clip's key in the store; dropping a modality makes it another clip."""
    return f"{media.key}-{'v' if media.has_video else '_'}{'a' if media.has_audio else '_'}-{media.frame_count}"


def tower_digest(towers: Iterable[nn.Module], *, settings: ModelSettings) -> str:
    """Return a digest of the towers' weights and of the sizes that shape their inputs."""
    digest = hashlib.sha256()
    layout = (asdict(settings.vision), asdict(settings.audio))
    digest.update(repr(layout).encode())
    for tower in towers:
        for name, tensor in sorted(tower.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().contiguous().cpu().flatten()
            # Viewing bytes needs at least one element and no dimension of size zero.
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def store_of(model: Any, *, root: Path) -> FeatureStore:
    """Return the store under a folder for the outputs of a model's towers, as their weights are now.

    Args:
        model: an `ArcVideoForConditionalGeneration`.
        root: folder of the outputs of any towers.
    """
    towers = (model.vision_model.vit, model.speech_encoder)
    return FeatureStore(root, tower_digest(towers, settings=model.settings))


_complained: set[Path] = set()
"""Folders that could not be written: said once in a process."""


class FeatureStore:
    """Patches and audio rows of clips under `root/digest`; writers may race, readers see whole files only."""

    def __init__(self, root: Path, digest: str) -> None:
        self.folder = Path(root) / digest[:32]
        self._whole: dict[Path, tuple[int, int, int]] = {}
        self._wrote = False

    def has(self, key: str) -> bool:
        """Return whether the clip's outputs are stored and as they were written; damaged ones are removed.

        A file is compared with its checksum once a process, as long as nobody touches it. One that cannot be read
        stays: it may be of somebody else, or whole.
        """
        path = self._path(key)
        try:
            facts = path.stat()
            now = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
            if self._whole.get(path) != now:
                check_features(path)
                self._whole[path] = now
        except FileNotFoundError:
            return False
        except (ValueError, OSError) as error:
            print(f"{path}: {error}; the clip is encoded again", file=sys.stderr)
            if isinstance(error, ValueError):
                with suppress(OSError):  # of somebody else
                    path.unlink(missing_ok=True)
            return False
        return True

    def load(self, key: str) -> tuple[Tensor, Tensor] | None:
        """Return patches (F, P, W) and rows (C, positions, W); None when they are not there as they were written.

        Another process may remove what `has` has just seen.
        """
        if not self.has(key):
            return None
        try:
            tensors = load_file(self._path(key))
            return tensors["patches"], tensors["speech"]
        except (SafetensorError, KeyError, OSError):
            return None

    def save(self, key: str, *, patches: Tensor, speech: Tensor) -> None:
        """Store the clip's outputs; the file appears complete or not at all.

        A store that cannot be written costs time later, so it is said once and nothing ends.
        """
        named = {"patches": patches, "speech": speech}
        try:
            self._write(self._path(key), {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()})
        except (OSError, SafetensorError) as error:
            if self.folder not in _complained:
                told = error_line(error, folder=self.folder, key="run_dir", then="; training goes on without")
                print(f"{self.folder}: tower outputs are not stored: {told}", file=sys.stderr)
            _complained.add(self.folder)

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._wrote:
            remove_leftovers(self.folder.glob("??/.*"))  # the library's own temporary files too
        self._wrote = True
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            save_file(dict(tensors), partial, metadata={_CHECK: _checksum(tensors), _PLACE: _place(path)})
            # safetensors writes for its owner alone; a cache is shared as far as the umask says.
            partial.chmod(path.parent.stat().st_mode & 0o666)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        # Keys are hashed: they may hold characters that a file name may not.
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"


_CHECK, _PLACE = "crc32", "place"
"""Names in the metadata of a file; by the first `arcvideo verify` knows one of ours, older ones lack the second."""


def _place(path: Path) -> str:
    """Return of which towers and clip a file is; one under another name is of another clip."""
    return f"{path.parent.parent.name}/{path.stem}"


def check_features(path: Path) -> bool:
    """Compare a file of tower outputs with its checksum; returns whether it has one.

    Raises:
        ValueError: it is damaged, or of another clip.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            said = metadata.get(_CHECK)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"is damaged ({error})") from None
    if said is not None and said != _checksum(tensors):
        raise ValueError("is damaged: its content is not what was written")
    if metadata.get(_PLACE, _place(path)) != _place(path):
        raise ValueError("is of another clip, or of other towers")
    return said is not None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of names, shapes and bytes, 8 hex digits: against bad disks and cut writes, not against an
    attacker.
    """
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        if tensor.numel():
            crc = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
