"""A disk cache of decoded clips: frames as JPEG at the model's resolution, log-mel as it is.

JPEG loses a little, so what the cache gives back is the same every time, but not what decoding alone gives: a clip that
is met for the first time is written and read back, and its key says so (no feature store mixes the two up).
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import sys
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arcvideo.decoding.buffers import Buffers
from arcvideo.media.settings import FrameCacheSettings, Layout
from arcvideo.types import Media

_SUFFIX = ".clip"
_SHARE_BETWEEN_SCANS = 16
"""A writer counts the folder again after writing this part of the limit: what others wrote, it does not see before."""
_PIECE = 1 << 16
"""Bytes of a frame that are copied at a time."""


class FrameCache:
    """Clips by content and sampling policy; readers see whole files only, and any number of processes may write.

    The folder holds at most `max_gib` and a sixteenth of that per writing process; what was not read for longest goes
    first.
    """

    def __init__(self, settings: FrameCacheSettings, *, layout: Layout) -> None:
        assert settings.path is not None
        self._root = Path(settings.path)
        self._quality = settings.quality
        self._limit = int(settings.max_gib * 2**30)
        self._how = f"jpeg{settings.quality}-{layout.mel_bins}-{layout.audio_positions}-{layout.max_seconds}"
        self._unscanned = self._limit  # so that the first write looks at what is there
        self._buffers = Buffers()
        self._complained = False

    def key(self, key: str) -> str:
        """Return the key of a clip whose frames went through the cache, from its key without it."""
        return hashlib.sha256(f"{key} {self._how}".encode()).hexdigest()

    def has(self, key: str) -> bool:
        """Return whether the clip of `key` (of `self.key`) seems to be there."""
        return self._path(key).is_file()

    def load(self, key: str) -> Media | None:
        """Return the clip of `key` (of `self.key`), or None when it is not there; a damaged file counts as not
        there.
        """
        path = self._path(key)
        try:
            facts, tensors = _read(path)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            path.unlink(missing_ok=True)
            return None
        frames = tensors.get("jpeg")
        return Media(
            key=key,
            frame_count=int(facts["frame_count"]),
            seconds=int(facts["seconds"]),
            has_video=frames is not None,
            has_audio="mel" in tensors,
            pixels=None if frames is None else self._decoded(frames, tensors["ends"]),
            mel=tensors.get("mel"),
        )

    def save(self, key: str, media: Media) -> Media:
        """Store a decoded clip and give back what `load` will give.

        Raises:
            ValueError: the folder cannot be written; that is no fault of the clip.
        """
        tensors: dict[str, Tensor] = {}
        if media.pixels is not None:
            tensors["jpeg"], tensors["ends"] = _encoded(media.pixels, quality=self._quality)
        if media.mel is not None:
            tensors["mel"] = media.mel.contiguous()
        if not tensors:
            return replace(media, key=key)
        try:
            self._write(self._path(key), tensors, media=media)
        except (OSError, SafetensorError) as error:
            if not _is_full(error):
                raise ValueError(f"data.frame_cache.path={self._root}: cannot be written: {error}") from error
            if not self._complained:
                print(f"data.frame_cache.path={self._root}: is full, nothing more is cached: {error}", file=sys.stderr)
            self._complained = True
        pixels = None if media.pixels is None else self._decoded(tensors["jpeg"], tensors["ends"])
        return replace(media, key=key, pixels=pixels)

    def _write(self, path: Path, tensors: dict[str, Tensor], *, media: Media) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")
        facts = {"frame_count": str(media.frame_count), "seconds": str(media.seconds)}
        facts["crc32"] = _checksum(facts, tensors)
        try:
            save_file(tensors, partial, metadata=facts)
            # safetensors writes for its owner alone; a cache is shared as far as the umask says.
            partial.chmod(path.parent.stat().st_mode & 0o666)
            self._make_room(partial.stat().st_size)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _decoded(self, jpeg: Tensor, ends: Tensor) -> Tensor:
        """Return (F, 3, S, S) uint8, channels last in memory: as JPEG gives them and convolutions like them."""
        data, frames, start = jpeg.numpy().data, None, 0
        for number, end in enumerate(ends.tolist()):
            with Image.open(io.BytesIO(data[start:end]), formats=["JPEG"]) as image:
                if frames is None:
                    frames = self._buffers.lend((len(ends), image.height, image.width, 3))
                _unpack(image, into=frames[number])
            start = end
        assert frames is not None
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def _make_room(self, size: int) -> None:
        self._unscanned += size
        if self._unscanned < self._limit // _SHARE_BETWEEN_SCANS:
            return
        self._unscanned = 0
        files = []
        for path in self._root.glob(f"??/*{_SUFFIX}"):
            try:
                facts = path.stat()
            except FileNotFoundError:  # another process made room too
                continue
            files.append((facts.st_mtime_ns, facts.st_size, path))
        total = size + sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in sorted(files):
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= bytes_

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}{_SUFFIX}"


def check_cached(path: Path) -> None:
    """Compare a stored clip with its checksum.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        _read(path)
    except SafetensorError as error:
        raise ValueError(f"is damaged ({error})") from None


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return what a file says of its clip, and its tensors; SafetensorError when they are not what was written."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if facts.get("crc32") != _checksum(facts, tensors):
        raise SafetensorError("its content is not what was written")
    return facts, tensors


def _checksum(facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of everything in a file, 8 hex digits: against bad disks and cut writes, not against an
    attacker.
    """
    crc = zlib.crc32(f"{facts.get('frame_count')} {facts.get('seconds')}".encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.numpy().view(np.uint8).data, crc)
    return f"{crc:08x}"


def _is_full(error: OSError | SafetensorError) -> bool:
    """Return whether a write failed for want of room, which a run survives; a folder that never takes any is a
    mistake.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"os error (\d+)", str(error))):
        number = int(match[1])
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _encoded(pixels: Tensor, *, quality: int) -> tuple[Tensor, Tensor]:
    """Return (bytes,) uint8 of all frames, one JPEG after the other, and (F,) int64 where each ends."""
    parts = []
    for frame in pixels.permute(0, 2, 3, 1).numpy():
        stream = io.BytesIO()
        # Half the colour resolution, as the video itself has it: twice as fast to read as full. Fitted Huffman tables
        # change no pixel; they cost half as much again to write, once, and leave less to read.
        Image.fromarray(frame).save(stream, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
        parts.append(stream.getvalue())
    joined = np.frombuffer(b"".join(parts), dtype=np.uint8).copy()
    return torch.from_numpy(joined), torch.tensor([len(part) for part in parts]).cumsum(0)


def _unpack(image: Image.Image, *, into: np.ndarray) -> None:
    """Write the pixels of an RGB image into (H, W, 3) uint8, contiguous.

    `np.asarray(image)` gives the same, by three copies of the whole frame; this is one, in pieces that a core's cache
    holds. The encoder is what `Image.tobytes` uses.
    """
    image.load()
    encoder = Image._getencoder("RGB", "raw", "RGB")
    encoder.setimage(image.im, (0, 0, *image.size))
    room, start, status = into.reshape(-1).data, 0, 0
    while not status:
        _, status, piece = encoder.encode(_PIECE)
        room[start : start + len(piece)] = piece
        start += len(piece)
    if status < 0 or start != into.size:
        raise OSError(f"a stored frame gave {start} bytes of {into.size}")
