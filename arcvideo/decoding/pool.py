"""Decoding in processes that can be killed: a file that hangs or crashes a decoder costs one MediaError."""

from __future__ import annotations

import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO

from arcvideo.decoding import wire
from arcvideo.decoding.tries import FROM_OUTSIDE, TRIES, TRIES_FROM_OUTSIDE
from arcvideo.media.clip import as_clip, read_request
from arcvideo.media.errors import MediaError
from arcvideo.media.read import ClipArrays, ReadRequest
from arcvideo.media.settings import Layout, MediaLimits
from arcvideo.types import Clip

_START_SECONDS = 120.0
_PIECE = 1 << 20
_PAUSE = 0.5
"""Seconds before a file is read again whose process was ended from outside, doubled each time: memory gets free."""


class MediaPool:
    """`count` decoding processes behind one `read_clip`, for use from any number of threads.

    Processes start when first needed, and again after one was killed or crashed.
    """

    def __init__(self, *, count: int = 1, limits: MediaLimits | None = None) -> None:
        if count < 1:
            raise ValueError(f"count={count}: a media pool needs at least one process")
        self._idle: queue.LifoQueue[MediaWorker] = queue.LifoQueue()
        self._workers = [MediaWorker(limits=limits or MediaLimits()) for _ in range(count)]
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def read_clip(
        self,
        data: bytes,
        *,
        name: str,
        layout: Layout,
        policy: str = "middle",
        seed: int = 0,
        sidecar_audio: bytes | None = None,
        font: str | None = None,
        decoder: str = "pyav",
        window: Sequence[float] | None = None,
        bare: bool = False,
    ) -> Clip:
        """As `arcvideo.media.clip.read_clip`, in another process; waits for a free one.

        Raises:
            MediaError: as there, and `timeout` past the deadline, `crashed` when the process died, both after the file
                was read again in a new process: a good clip is not given up because somebody killed its decoder.
        """
        request = read_request(
            name=name, layout=layout, policy=policy, seed=seed, font=font, decoder=decoder, window=window, bare=bare
        )
        worker = self._idle.get()
        try:
            return as_clip(_patient(worker, data, request=request, sidecar_audio=sidecar_audio))
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes; a later read starts new ones."""
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> MediaPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MediaWorker:
    """One decoding process and the parent's ends of its pipes; one request at a time."""

    def __init__(self, *, limits: MediaLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._owner = 0
        self.ended_by = 0
        """Signal that ended the last process which died, 0 for none."""

    def read(self, data: bytes, *, request: ReadRequest, sidecar_audio: bytes | None = None) -> ClipArrays:
        """Return the clip, or the MediaError that the process met; a process that does not answer in time is killed."""
        if len(data) > self._limits.max_bytes:  # not worth sending
            raise MediaError("too_large", f"{request.name}: {len(data)} bytes, the limit is {self._limits.max_bytes}")
        with self._lock:
            process = self._started(request.name)
            deadline = time.monotonic() + self._limits.deadline_seconds
            try:
                for piece in wire.pack_request(data, request=request, sidecar_audio=sidecar_audio):
                    _send(process, piece, deadline=deadline)
                head_size, body_size = wire.LENGTHS.unpack(_receive(process, wire.LENGTHS.size, deadline=deadline))
                head = _receive(process, head_size, deadline=deadline)
                body = _receive(process, body_size, deadline=deadline)
                if wire.is_last(head):
                    self._end()
            except TimeoutError:
                self._end()
                self.ended_by = 0
                seconds = self._limits.deadline_seconds
                raise MediaError("timeout", f"{request.name}: not decoded within {seconds} s") from None
            except (BrokenPipeError, EOFError):
                raise MediaError("crashed", f"{request.name}: the decoder died ({self._post_mortem()})") from None
            except BaseException:
                self._end()  # an interrupt leaves a half-read answer in the pipe
                raise
        return wire.unpack_reply(head, body)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _started(self, name: str) -> subprocess.Popen[bytes]:
        """Return the running process; after a fork the parent's process is left alone and a new one is started."""
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        if self._owner == os.getpid():
            self._end()
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "arcvideo.decoding.worker", json.dumps(asdict(self._limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            bufsize=0,
        )
        self._owner = os.getpid()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        try:
            _receive(self._process, len(wire.READY), deadline=time.monotonic() + _START_SECONDS)
        except (EOFError, TimeoutError):
            detail = self._post_mortem()
            raise MediaError("crashed", f"{name}: the decoding process does not start ({detail})") from None
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def _post_mortem(self) -> str:
        """Return how the process ended and the last thing it printed."""
        process, log = self._process, self._log
        if process is None or log is None:
            return "no process"
        try:
            code = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = 0
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        self._end()
        self.ended_by = max(0, -code)
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return ": ".join([how, *lines[-1:]])


def _patient(worker: MediaWorker, data: bytes, *, request: ReadRequest, sidecar_audio: bytes | None) -> ClipArrays:
    """Return what the worker reads, tried again where its process crashed, was killed, or did not answer."""
    tried = 0
    while True:
        try:
            return worker.read(data, request=request, sidecar_audio=sidecar_audio)
        except MediaError as error:
            outside = error.reason == "crashed" and worker.ended_by in FROM_OUTSIDE
            tried += 1
            if error.reason not in ("crashed", "timeout") or tried >= (TRIES_FROM_OUTSIDE if outside else TRIES):
                raise
            if outside:
                time.sleep(_PAUSE * 2 ** (tried - 1))


def _send(process: subprocess.Popen[bytes], data: bytes, *, deadline: float) -> None:
    assert process.stdin is not None
    view = memoryview(data)
    while view:
        _wait(process.stdin, selectors.EVENT_WRITE, deadline=deadline)
        view = view[os.write(process.stdin.fileno(), view[:_PIECE]) :]


def _receive(process: subprocess.Popen[bytes], size: int, *, deadline: float) -> bytes:
    assert process.stdout is not None
    pieces = bytearray()
    while len(pieces) < size:
        _wait(process.stdout, selectors.EVENT_READ, deadline=deadline)
        piece = os.read(process.stdout.fileno(), min(_PIECE, size - len(pieces)))
        if not piece:
            raise EOFError
        pieces += piece
    return bytes(pieces)


def _wait(pipe: IO[bytes], event: int, *, deadline: float) -> None:
    remaining = deadline - time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, event)
        if remaining <= 0 or not selector.select(remaining):
            raise TimeoutError
