"""The decoding process: `python -m arcvideo.decoding.worker`, fed by `arcvideo.decoding.pool`. Imports no torch."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from arcvideo.decoding import wire
from arcvideo.media.errors import MediaError
from arcvideo.media.read import ClipArrays, read_arrays
from arcvideo.media.settings import MediaLimits

_ORPHAN_SECONDS = 30.0
"""How long past the deadline a stuck worker whose parent is gone lives on."""
_FULL = 0.5
"""Share of its memory that a worker may hold between two files before it asks to be replaced."""
_STATM = Path("/proc/self/statm")


def serve(source: BinaryIO, sink: BinaryIO, *, limits: MediaLimits) -> None:
    """Answers requests until the parent closes the pipe."""
    sink.write(wire.READY)
    sink.flush()
    while lengths := source.read(wire.LENGTHS.size):
        head_size, body_size = wire.LENGTHS.unpack(lengths)
        head, body = source.read(head_size), source.read(body_size)
        faulthandler.dump_traceback_later(limits.deadline_seconds + _ORPHAN_SECONDS, exit=True)
        reply = _answer(head, body, limits)
        faulthandler.cancel_dump_traceback_later()
        for piece in wire.pack_reply(reply, last=_is_full(limits)):
            sink.write(piece)
        sink.flush()


def _answer(head: bytes, body: bytes, limits: MediaLimits) -> ClipArrays | MediaError:
    data, request, sidecar = wire.unpack_request(head, body)
    try:
        return read_arrays(data, request=request, limits=limits, sidecar_audio=sidecar)
    except MediaError as error:
        return error
    except MemoryError:
        return MediaError("too_large", f"{request.name}: needs more memory than {limits.max_memory_bytes} bytes")


def _is_full(limits: MediaLimits) -> bool:
    """Return whether what this process holds on to, leaked by a decoder or not, leaves too little for another file."""
    if not limits.max_memory_bytes or not _STATM.exists():
        return False
    pages = int(_STATM.read_text().split()[0])  # address space, which is what the limit is on
    return pages * resource.getpagesize() > limits.max_memory_bytes * _FULL


def _volunteer() -> None:
    """Where memory runs out all the same, the kernel should end this process, not the training that it serves."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Take the limits as JSON from the command line."""
    limits = MediaLimits(**json.loads(sys.argv[1]))
    _volunteer()
    if limits.max_memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (limits.max_memory_bytes, limits.max_memory_bytes))
    # Replies go to a private copy of the pipe: whatever a library prints must not end up among them.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, sink, limits=limits)


if __name__ == "__main__":
    main()
