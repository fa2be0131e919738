"""A disk cache of frozen tower outputs, keyed by the content of clip and towers."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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


class FeatureStore:
    """Patches and audio rows of clips under `root/digest`; writers may race, readers see whole files only."""

    def __init__(self, root: Path, digest: str) -> None:
        self.folder = Path(root) / digest[:32]

    def has(self, key: str) -> bool:
        """Return whether the clip's outputs are stored."""
        return self._path(key).exists()

    def load(self, key: str) -> tuple[Tensor, Tensor]:
        """Return patches (F, P, W) and rows (C, positions, W).

        Raises:
            ValueError: a damaged file.
        """
        path = self._path(key)
        try:
            tensors = load_file(path)
            return tensors["patches"], tensors["speech"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"cached features {path} are damaged: delete the file") from error

    def save(self, key: str, *, patches: Tensor, speech: Tensor) -> None:
        """Store the clip's outputs; the file appears complete or not at all."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")
        tensors = {"patches": patches, "speech": speech}
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
            # safetensors writes for its owner alone; a cache is shared as far as the umask says.
            partial.chmod(path.parent.stat().st_mode & 0o666)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        # Keys are hashed: they may hold characters that a file name may not.
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"
