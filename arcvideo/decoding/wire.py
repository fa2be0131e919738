"""How a decoding process and its parent talk over a socket: a JSON head, then raw bytes. No pickle.

A decoder that was taken over by a hostile file can send wrong numbers, but it cannot make the parent run code.

It is a socket because its bytes are received straight into memory that was used before (`Buffers`): fresh pages for a
clip cost threads of one process as much as reading its JPEGs. Shared memory, new for each clip, took three times the
CPU.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.decoding.probe import Extent, MediaFacts, Probed, ProbeJob
from arcvideo.media.errors import REASONS, MediaError
from arcvideo.media.read import ClipArrays, ReadRequest

Lend = Callable[[tuple[int, ...]], np.ndarray]
"""Gives an uint8 array of a shape, with anything in it."""
Message = tuple[dict[str, Any], list[np.ndarray]]
"""A head, and what follows it: contiguous arrays, each read as bytes."""
_LENGTHS = struct.Struct("<QQ")
"""Sizes of the head and of the body, before both."""
_LONGEST_HEAD = 1 << 20
_DTYPES = {"spans": np.float32, "waveform": np.float32, "frames": np.uint8}
"""Arrays of a clip as they travel, those of large items first, so that each begins at a multiple of its item."""
_WASTE = 1.25
"""A piece may be so many times larger than what it is lent for."""


def send(to: socket.socket, message: Message, *, deadline: float | None = None) -> None:
    """Write a message.

    Args:
        deadline: of `time.monotonic`.

    Raises:
        TimeoutError, ConnectionError
    """
    head, arrays = message
    text = json.dumps(head).encode()
    lengths = _LENGTHS.pack(len(text), sum(array.nbytes for array in arrays))
    pieces: list[bytes | memoryview] = [lengths, text, *(array.data for array in arrays)]
    for piece in pieces:
        to.settimeout(_left(deadline))
        to.sendall(piece)


def receive(
    source: socket.socket, *, most: int, lend: Lend, deadline: float | None = None
) -> tuple[dict[str, Any], np.ndarray]:
    """Return a head and its body, (N,) uint8.

    Args:
        most: bytes that a body may have.
        lend: gives the memory of the body.
        deadline: of `time.monotonic`.

    Raises:
        EOFError: the other side is gone, or sends what it never would.
        TimeoutError, ConnectionError
    """
    head_size, body_size = _LENGTHS.unpack(_filled(np.empty(_LENGTHS.size, np.uint8), source, deadline).data)
    if head_size > _LONGEST_HEAD or body_size > most:
        raise EOFError
    text = _filled(np.empty(head_size, np.uint8), source, deadline).tobytes()
    try:
        head = json.loads(text)
    except (ValueError, RecursionError):
        raise EOFError from None
    if not isinstance(head, dict):
        raise EOFError
    return head, _filled(lend((body_size,)), source, deadline) if body_size else np.empty(0, np.uint8)


def read_question(data: bytes, *, request: ReadRequest, sidecar_audio: bytes | None) -> Message:
    """Ask for the clip in these bytes."""
    parts = [data] if sidecar_audio is None else [data, sidecar_audio]
    sizes = [len(part) for part in parts]
    return {"request": asdict(request), "sizes": sizes}, [np.frombuffer(part, np.uint8) for part in parts if part]


def read_asked(head: dict[str, Any], body: np.ndarray) -> tuple[bytes, ReadRequest, bytes | None]:
    """Return (media, request, sidecar audio) of a `read_question`."""
    media, *rest = head["sizes"]
    sidecar = body[media:].tobytes() if rest else None
    return body[:media].tobytes(), ReadRequest(**head["request"]), sidecar


def probe_question(job: ProbeJob) -> Message:
    """Ask for what is to know of these files."""
    parts = (job.main, job.sound)
    return {"extents": [None if part is None else {**vars(part), "path": str(part.path)} for part in parts]}, []


def probe_asked(head: dict[str, Any]) -> ProbeJob:
    """Return the job of a `probe_question`."""
    main, sound = (row and Extent(**{**row, "path": Path(row["path"])}) for row in head["extents"])
    return ProbeJob(main=main, sound=sound)


def answer(result: ClipArrays | Probed | MediaError, *, last: bool) -> Message:
    """Answer either question; `last` tells that the process wants to be replaced."""
    if isinstance(result, MediaError):
        return {"reason": result.reason, "detail": result.detail, "last": last}, []
    if isinstance(result, Probed):
        facts = {"facts": vars(result.facts), "uses_sound": result.uses_sound, "digest": result.digest.hex()}
        return {**facts, "last": last}, []
    arrays = {name: np.ascontiguousarray(array) for name in _DTYPES if (array := getattr(result, name)) is not None}
    shapes = {name: array.shape for name, array in arrays.items()}
    return {"key": result.key, "duration": result.duration, "shapes": shapes, "last": last}, list(arrays.values())


def refused(head: dict[str, Any]) -> MediaError | None:
    """Return the error that the other side met, if it did."""
    if "reason" not in head:
        return None
    reason = str(head["reason"])
    return MediaError(reason if reason in REASONS else "crashed", str(head.get("detail")))


def answered_clip(head: dict[str, Any], body: np.ndarray) -> ClipArrays:
    """Return the clip; its arrays lie in the body."""
    arrays: dict[str, Any] = dict.fromkeys(_DTYPES)
    offset = 0
    for name, shape in head["shapes"].items():
        size = math.prod(shape) * np.dtype(_DTYPES[name]).itemsize
        arrays[name] = body[offset : offset + size].view(_DTYPES[name]).reshape(shape)
        offset += size
    return ClipArrays(key=head["key"], duration=head["duration"], **arrays)


def answered_probe(head: dict[str, Any]) -> Probed:
    """Return what was found."""
    digest = bytes.fromhex(head["digest"])
    return Probed(facts=MediaFacts(**head["facts"]), uses_sound=head["uses_sound"], digest=digest)


def _filled(room: np.ndarray, source: socket.socket, deadline: float | None) -> np.ndarray:
    view = room.data
    while view:
        source.settimeout(_left(deadline))
        count = source.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return room


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class Buffers:
    """Lends uint8 arrays and takes them back once nothing refers to them any more; any thread may ask."""

    def __init__(self, *, keep: int = 512 << 20) -> None:
        """Start empty.

        Args:
            keep: bytes that may lie idle; what comes back beyond them is freed.
        """
        self._keep = keep
        self._lock = threading.Lock()
        # Filled by whichever thread drops an array, maybe in the middle of `lend`: so without a lock.
        self._returned: deque[np.ndarray] = deque()
        self._idle: list[np.ndarray] = []

    def lend(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a contiguous uint8 array with anything in it.

        It counts as used while it, a view of it, or a tensor over it lives: all of them hold the array.
        """
        size = prod(shape)
        piece = self._piece(size)
        # Over a memoryview, so that the base of each view is `array` and not what lies below.
        array = np.frombuffer(piece.data, dtype=np.uint8)
        weakref.finalize(array, self._returned.append, piece).atexit = False
        return array[:size].reshape(shape)

    def _piece(self, size: int) -> np.ndarray:
        with self._lock:
            while self._returned:
                self._idle.append(self._returned.popleft())
            fitting = [piece for piece in self._idle if size <= piece.nbytes <= size * _WASTE]
            chosen = min(fitting, key=lambda piece: piece.nbytes, default=None)
            self._idle = [piece for piece in self._idle if piece is not chosen]
            while sum(piece.nbytes for piece in self._idle) > self._keep:
                self._idle.pop(0)  # the one that lay idle for longest
        return np.empty(size, dtype=np.uint8) if chosen is None else chosen
