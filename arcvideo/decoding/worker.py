"""The decoding process: `python -m arcvideo.decoding.worker`, asked by `arcvideo.decoding.pool`. Imports no torch.

It answers two questions: what clip these bytes are, and what is to know of these files.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.decoding import wire
from arcvideo.decoding.probe import Probed, examine
from arcvideo.media.errors import MediaError
from arcvideo.media.read import ClipArrays, read_arrays
from arcvideo.media.settings import MediaLimits

_ORPHAN_SECONDS = 30.0
"""How long past the deadline a stuck worker whose parent is gone lives on."""
_FULL = 0.5
"""Share of its memory that a worker may hold between two files before it asks to be replaced."""
_MOST_CLIPS = 4_000
"""A worker asks to be replaced after so many: heaps that decoders have cut up grow for ever, if slowly. A new process
costs about a second, beside the training."""
_STATM = Path("/proc/self/statm")


def serve(parent: socket.socket, *, limits: MediaLimits) -> None:
    """Answer questions until the parent closes its end."""
    wire.send(parent, ({"ready": True}, []))
    clips = 0
    while True:
        try:
            head, body = wire.receive(parent, most=sys.maxsize, lend=lambda shape: np.empty(shape, np.uint8))
        except EOFError:
            return
        faulthandler.dump_traceback_later(limits.deadline_seconds + _ORPHAN_SECONDS, exit=True)
        result = _result(head, body, limits=limits)
        faulthandler.cancel_dump_traceback_later()
        clips += isinstance(result, ClipArrays)
        wire.send(parent, wire.answer(result, last=clips >= _MOST_CLIPS or _is_full(limits)))


def _result(head: dict[str, Any], body: np.ndarray, *, limits: MediaLimits) -> ClipArrays | Probed | MediaError:
    name = "a file"
    try:
        if "extents" in head:
            job = wire.probe_asked(head)
            name = job.main.name
            return examine(job, limits=limits)
        data, request, sidecar = wire.read_asked(head, body)
        name = request.name
        return read_arrays(data, request=request, limits=limits, sidecar_audio=sidecar)
    except MediaError as error:
        return error
    except MemoryError:
        return MediaError("too_large", f"{name}: needs more memory than {limits.max_memory_bytes} bytes")


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
    """Take the limits as JSON from the command line, and the socket to the parent as standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    limits = MediaLimits(**json.loads(sys.argv[1]))
    _volunteer()
    if limits.max_memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (limits.max_memory_bytes, limits.max_memory_bytes))
    with socket.socket(fileno=os.dup(0)) as parent, suppress(ConnectionError):
        serve(parent, limits=limits)


if __name__ == "__main__":
    main()
