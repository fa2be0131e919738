"""How a clip travels between the decoding process and its parent: a JSON head, then raw bytes. No pickle.

A decoder that was taken over by a hostile file can send wrong numbers, but it cannot make the parent run code.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict
from typing import Any

import numpy as np

from arcvideo.media.errors import REASONS, MediaError
from arcvideo.media.read import ClipArrays, ReadRequest

LENGTHS = struct.Struct("<QQ")
"""Sizes of the head and of the body, before both."""
READY = b"ready\n"
_DTYPES = {"frames": np.uint8, "spans": np.float32, "waveform": np.float32}


def pack_request(data: bytes, *, request: ReadRequest, sidecar_audio: bytes | None) -> list[bytes]:
    """Return the pieces to write, in order."""
    head = {
        "request": asdict(request),
        "media": len(data),
        "sidecar": None if sidecar_audio is None else len(sidecar_audio),
    }
    return _framed(head, [data, sidecar_audio or b""])


def unpack_request(head: bytes, body: bytes) -> tuple[bytes, ReadRequest, bytes | None]:
    """Return (media, request, sidecar audio)."""
    fields = json.loads(head)
    split = fields["media"]
    return body[:split], ReadRequest(**fields["request"]), None if fields["sidecar"] is None else body[split:]


def pack_reply(reply: ClipArrays | MediaError, *, last: bool = False) -> list[bytes]:
    """Return the pieces to write, in order; `last` tells that the process wants to be replaced."""
    if isinstance(reply, MediaError):
        return _framed({"reason": reply.reason, "detail": reply.detail, "last": last}, [])
    arrays = {name: getattr(reply, name) for name in _DTYPES}
    shapes = {name: list(array.shape) for name, array in arrays.items() if array is not None}
    head = {"key": reply.key, "duration": reply.duration, "shapes": shapes, "last": last}
    return _framed(head, [np.ascontiguousarray(arrays[name]).tobytes() for name in shapes])


def is_last(head: bytes) -> bool:
    """Return whether the process that replied wants to be replaced."""
    return bool(json.loads(head)["last"])


def unpack_reply(head: bytes, body: bytes) -> ClipArrays:
    """Return the clip.

    Raises:
        MediaError: the one that the other side met.
    """
    fields = json.loads(head)
    if "reason" in fields:
        reason = fields["reason"] if fields["reason"] in REASONS else "crashed"
        raise MediaError(reason, str(fields["detail"]))
    arrays: dict[str, Any] = dict.fromkeys(_DTYPES)
    offset = 0
    for name, shape in fields["shapes"].items():
        count = math.prod(shape)
        # copy: tensors made from it must own writable memory
        arrays[name] = np.frombuffer(body, dtype=_DTYPES[name], count=count, offset=offset).reshape(shape).copy()
        offset += arrays[name].nbytes
    return ClipArrays(key=fields["key"], duration=fields["duration"], **arrays)


def _framed(head: dict[str, Any], body: list[bytes]) -> list[bytes]:
    text = json.dumps(head).encode()
    return [LENGTHS.pack(len(text), sum(len(piece) for piece in body)), text, *body]
