"""A disk cache of decoded clips: frames at the model's resolution, as JPEG or as they are, and the log-mel as it is.

JPEG loses a little, so what the cache gives back is the same every time, but not what decoding alone gives: a clip that
is met for the first time is written and read back, and its key says so (no feature store mixes the two up).

Of a clip whose frames are drawn at random some candidates of each interval are kept; a visit reads those that it drew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import sys
import uuid
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from arcvideo.decoding.wire import Buffers
from arcvideo.files import BROKEN, FULL, error_line, error_number, remove_leftovers
from arcvideo.media.settings import FrameCacheSettings, Layout
from arcvideo.types import Media

_SUFFIX = ".clip"
_SHARE_BETWEEN_SCANS = 16
"""A writer counts the folder again after writing this part of the limit: what others wrote, it does not see before."""
_PIECE = 1 << 16
"""Bytes of a frame that are copied at a time."""
_SUMMED = 512
"""Words of eight bytes that are added up before their CRC is taken: six times as fast as a CRC of all bytes."""
_DTYPES = {"F32": np.float32, "I64": np.int64, "U8": np.uint8}
"""Types of a safetensors file that occur here."""


class _DamagedError(Exception):
    """A file is not what was written."""


def draw(*, seed: int, intervals: int, candidates: int) -> list[int]:
    """Return the slot of one frame of each interval, where the candidates of one interval lie behind the other's."""
    rng = np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, intervals, candidates])
    return (np.arange(intervals) * candidates + rng.integers(0, candidates, size=intervals)).tolist()


def drawn_key(key: str, slots: Sequence[int]) -> str:
    """Return the key of a clip of which these frames were drawn, from the key of its file."""
    return hashlib.sha256(f"{key} {list(slots)}".encode()).hexdigest()


class FrameCache:
    """Clips by content and sampling policy; readers see whole files only, and any number of processes may write.

    The folder holds at most `max_gib` and a sixteenth of that per writing process; what was not read for longest goes
    first.
    """

    def __init__(self, settings: FrameCacheSettings, *, layout: Layout) -> None:
        assert settings.path is not None
        self._root = Path(settings.path)
        self._quality = settings.quality if settings.form == "jpeg" else None
        self._limit = int(settings.max_gib * 2**30)
        form = "raw" if self._quality is None else f"jpeg{self._quality}"
        self._how = f"{form}-{layout.mel_bins}-{layout.audio_positions}-{layout.max_seconds}"
        self._unscanned = self._limit  # so that the first write looks at what is there
        self._buffers = Buffers()
        self._complained, self._wrote = False, False

    def key(self, key: str) -> str:
        """Return the key of a clip whose frames went through the cache, from its key without it."""
        return hashlib.sha256(f"{key} {self._how}".encode()).hexdigest()

    def has(self, key: str) -> bool:
        """Return whether the clip of `key` (of `self.key`) seems to be there."""
        return self._path(key).is_file()

    def load(self, key: str, *, slots: Sequence[int] | None = None) -> Media | None:
        """Return the clip of `key` (of `self.key`), or None when it is not there; a damaged file counts as not there.

        Args:
            key: of the file.
            slots: the frames that are wanted, of those stored; None is all of them.
        """
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0) as file:
                stored = _Stored(file.fileno(), key=key)
                pixels = self._pixels(stored, slots=slots)
        except OSError:  # not there, or nobody knows what it holds: no descriptors left, a file of somebody else
            return None
        except _DamagedError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # a folder that somebody else fills; they decide what goes first
            os.utime(path)
        return Media(
            key=key,
            frame_count=int(stored.facts["frame_count"]),
            seconds=int(stored.facts["seconds"]),
            has_video=pixels is not None,
            has_audio=stored.mel is not None,
            pixels=pixels,
            mel=stored.mel,
        )

    def save(self, key: str, media: Media, *, slots: Sequence[int] | None = None) -> Media:
        """Store a decoded clip and give back what `load` will give.

        Raises:
            ValueError: the folder cannot be written and holds nothing, a mistake in the settings; that is no fault of
                the clip. A disk that is full or broken ends nothing.
        """
        tensors: dict[str, Tensor] = {}
        if media.pixels is not None:
            tensors["frames"], tensors["places"] = _packed(media.pixels, quality=self._quality)
        if media.mel is not None:
            tensors["mel"] = media.mel.contiguous()
        if not tensors:
            return replace(media, key=key)
        try:
            self._write(key, tensors, media=media)
        except (OSError, SafetensorError) as error:
            number, told = error_number(error), error_line(error, folder=self._root, key="path", then="")
            if number not in FULL | BROKEN and not self._wrote and not self._holds_clips():
                raise ValueError(f"data.frame_cache.path={self._root}: cannot be written: {told}") from error
            what = "is full" if number in FULL else f"cannot be written{' any more' if self._wrote else ''}"
            self._complain(f"{what}, what is missing is decoded every time: {told}")
        if media.pixels is None:
            return replace(media, key=key)
        rows = range(len(media.pixels)) if slots is None else slots
        if self._quality is None:
            return replace(media, key=key, pixels=media.pixels if slots is None else media.pixels[list(rows)])
        data = tensors["frames"].numpy().data
        return replace(media, key=key, pixels=self._decoded([data[i:j] for i, j, _ in tensors["places"][list(rows)]]))

    def _holds_clips(self) -> bool:
        """Return whether somebody has filled the folder, who need not let others write."""
        return next(self._root.glob(f"??/*{_SUFFIX}"), None) is not None

    def _complain(self, what: str) -> None:
        """Say once what keeps clips from being stored; a run goes on without."""
        if not self._complained:
            print(f"data.frame_cache.path={self._root}: {what}", file=sys.stderr)
        self._complained = True

    def _write(self, key: str, tensors: dict[str, Tensor], *, media: Media) -> None:
        path = self._path(key)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self._limit:
            limit = f"data.frame_cache.max_gib={self._limit / 2**30:g}"
            self._complain(f"a clip takes {size / 2**30:.3g} GiB, more than {limit}: such clips are not stored")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")
        side = 0 if media.pixels is None else media.pixels.shape[-1]
        facts = {"frame_count": str(media.frame_count), "seconds": str(media.seconds), "side": str(side)}
        facts["key"] = key  # so that no file is taken for another one whose name it got
        facts["check"] = _check_of_all({name: tensor.numpy() for name, tensor in tensors.items()}, facts)
        try:
            save_file(tensors, partial, metadata=facts)
            # safetensors writes for its owner alone; a cache is shared as far as the umask says.
            partial.chmod(path.parent.stat().st_mode & 0o666)
            self._make_room(partial.stat().st_size)
            os.replace(partial, path)
            self._wrote = True
        finally:
            partial.unlink(missing_ok=True)

    def _pixels(self, stored: _Stored, *, slots: Sequence[int] | None) -> Tensor | None:
        """Return (F, 3, S, S) uint8 of the wanted frames; None of a clip without any."""
        if stored.places is None:
            return None
        try:
            places = stored.places if slots is None else stored.places[list(slots)]
            if self._quality is not None:
                return self._decoded([stored.frame(place) for place in places])
            side = int(stored.facts["side"])
        except (ValueError, LookupError, SyntaxError, UnidentifiedImageError):
            raise _DamagedError("its frames are not of its kind") from None
        frames = self._buffers.lend((len(places), 3, side, side))
        for frame, place in zip(frames, places, strict=True):
            stored.frame(place, into=frame)
        return torch.from_numpy(frames)

    def _decoded(self, jpegs: Sequence[memoryview]) -> Tensor:
        """Return (F, 3, S, S) uint8, channels last in memory: as JPEG gives them and convolutions like them."""
        frames = None
        for number, jpeg in enumerate(jpegs):
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
                if frames is None:
                    frames = self._buffers.lend((len(jpegs), image.height, image.width, 3))
                _unpack(image, into=frames[number])
        assert frames is not None
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def _make_room(self, size: int) -> None:
        self._unscanned += size
        if self._unscanned < self._limit // _SHARE_BETWEEN_SCANS:
            return
        self._unscanned = 0
        remove_leftovers(self._root.glob("??/.*"))  # those of safetensors, too, which writes under a name of its own
        files = []
        for path in self._root.glob(f"??/*{_SUFFIX}"):
            with suppress(OSError):  # another process made room too
                facts = path.stat()
                files.append((facts.st_mtime_ns, facts.st_size, path))
        total = size + sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in sorted(files):
            if total <= self._limit:
                return
            with suppress(OSError):  # a file of somebody else
                path.unlink(missing_ok=True)
                total -= bytes_

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}{_SUFFIX}"


class _Stored:
    """An open file of a clip; of its frames only those are read that somebody asks for.

    Its layout is that of safetensors, read here so that frames come straight to where they stay: (N,) uint8 `frames`,
    (F, 3) int64 `places` of their first byte, the one behind their last, and their check, and (C, M, T) float32 `mel`.
    """

    def __init__(self, file: int, *, key: str) -> None:
        """Read all but the frames.

        Args:
            file: descriptor.
            key: under which it was stored.

        Raises:
            _DamagedError: they are not what was written.
        """
        self._file, self._size = file, os.fstat(file).st_size
        (size,) = struct.unpack("<Q", self._read(8, at=0).data)
        try:
            header = json.loads(bytes(self._read(size, at=8)))
            self.facts: dict[str, str] = header.pop("__metadata__")
            self._starts = {name: 8 + size + row["data_offsets"][0] for name, row in header.items()}
            shapes = {name: (np.dtype(_DTYPES[row["dtype"]]), row["shape"]) for name, row in header.items()}
            arrays = {
                name: self._read(prod(shape) * dtype.itemsize, at=self._starts[name]).view(dtype).reshape(shape)
                for name, (dtype, shape) in shapes.items() if name != "frames"
            }  # fmt: skip
            whole = self.facts["check"] == _check_of_all(arrays, self.facts)
        except (ValueError, LookupError, TypeError, AttributeError, MemoryError, ArithmeticError, RecursionError):
            raise _DamagedError("its header is not what was written") from None
        if not whole:
            raise _DamagedError("its content is not what was written")
        if self.facts.get("key") != key:
            raise _DamagedError("it was stored under another name")
        self.places: np.ndarray | None = arrays.get("places")
        self.mel: Tensor | None = torch.from_numpy(arrays["mel"]) if "mel" in arrays else None

    def frame(self, place: np.ndarray, *, into: np.ndarray | None = None) -> memoryview:
        """Return the bytes of a frame, which are read into an array where one is given.

        Raises:
            _DamagedError: they are not what was written.
        """
        start, end, check = place.tolist()
        data = self._read(end - start, at=self._starts["frames"] + start, into=into)
        if _check(data) != check:
            raise _DamagedError("its frames are not what was written")
        return data.data

    def _read(self, size: int, *, at: int, into: np.ndarray | None = None) -> np.ndarray:
        if size < 0 or at < 0 or at + size > self._size:
            raise _DamagedError("it is cut")
        room = np.empty(size, np.uint8) if into is None else into.reshape(-1)
        if size != room.size or os.preadv(self._file, [room.data], at) != size:
            raise _DamagedError("it is cut")
        return room


def check_cached(path: Path) -> None:
    """Compare a stored clip with its checks.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            stored = _Stored(file.fileno(), key=path.stem)
            for place in stored.places if stored.places is not None else ():
                stored.frame(place)
    except _DamagedError as error:
        raise ValueError(f"is damaged ({error})") from None


def _check_of_all(arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> str:
    """Return the check of everything in a file but its frames, whose own checks are among their places."""
    rows = [[name, str(array.dtype), list(array.shape), _check(array)] for name, array in sorted(arrays.items())
            if name != "frames"]  # fmt: skip
    told = {name: value for name, value in facts.items() if name != "check"}
    return f"{zlib.crc32(json.dumps([told, rows], sort_keys=True).encode()):08x}"


def _check(array: np.ndarray) -> int:
    """Return 32 bits that tell whether bytes are those written: against bad disks and cut writes, not an attacker."""
    data = array.reshape(-1).view(np.uint8)
    whole = data.size // (8 * _SUMMED) * 8 * _SUMMED
    sums = data[:whole].view(np.uint64).reshape(-1, _SUMMED).sum(axis=1, dtype=np.uint64)
    return zlib.crc32(data[whole:].data, zlib.crc32(sums.data))


def _packed(pixels: Tensor, *, quality: int | None) -> tuple[Tensor, Tensor]:
    """Return (N,) uint8 of all frames, one after the other, and (F, 3) int64: start, end, check of each.

    Equal neighbours, such as the candidates of a still picture, lie at one place.
    """
    parts: list[np.ndarray] = []
    places: list[tuple[int, int, int]] = []
    end = 0
    for number, frame in enumerate(pixels):
        if not number or not torch.equal(frame, pixels[number - 1]):
            data = np.frombuffer(_jpeg(frame, quality=quality), np.uint8) if quality else frame.numpy().reshape(-1)
            parts.append(data)
            start, end = end, end + data.size
        places.append((start, end, _check(parts[-1])))
    return torch.from_numpy(np.concatenate(parts)), torch.tensor(places)


def _jpeg(frame: Tensor, *, quality: int) -> bytes:
    stream = io.BytesIO()
    # Half the colour resolution, as the video itself has it: twice as fast to read as full. Fitted Huffman tables
    # change no pixel; they cost half as much again to write, once, and leave less to read.
    image = Image.fromarray(frame.permute(1, 2, 0).numpy())
    image.save(stream, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    return stream.getvalue()


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
