"""Media read in processes that can be killed: a file that hangs or crashes a decoder costs one MediaError."""

from __future__ import annotations

import errno
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Unpack

import numpy as np

from arcvideo.decoding import wire
from arcvideo.decoding.probe import Probed, ProbeJob, examine
from arcvideo.decoding.wire import Buffers
from arcvideo.media.errors import MediaError
from arcvideo.media.read import ClipArrays, Reading, ReadRequest, read_request
from arcvideo.media.settings import Layout, MediaLimits

if TYPE_CHECKING:
    from arcvideo.types import Clip

FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that no file makes a decoder die of: somebody sent them, most often the kernel when memory ran out."""
TRIES = 2
"""Times that a file is read whose process crashes or does not answer: once could be the machine's fault."""
TRIES_FROM_OUTSIDE = 6
"""The same for a process that was ended from outside."""
_PAUSE = 0.5
"""Seconds before a file is read again whose process was ended from outside, doubled each time: memory gets free."""
_SCARCE = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""What keeps a process from starting for as long as others take too much."""
_START_SECONDS = 120.0
"""Time a new process has to import what it needs."""
_COMMAND = (sys.executable, "-P", "-m", "arcvideo.decoding.worker")
_LARGEST_ANSWER = 8 << 30
"""Bytes of an answer where the memory of a process is not limited."""
_AHEAD = 4
"""Files per process that are being examined or wait for an earlier one."""


class NoDecoder(ValueError):
    """No process that decodes can be started; no file is to blame."""


class MediaPool:
    """`count` decoding processes, for use from any number of threads; with 0 all happens here, unprotected.

    Processes start when first needed, and again after one was killed or crashed.
    """

    def __init__(self, *, count: int = 1, limits: MediaLimits | None = None) -> None:
        if count < 0:
            raise ValueError(f"count={count}: a media pool has 0 processes or more")
        self._limits = limits or MediaLimits()
        self._idle: queue.LifoQueue[MediaWorker] = queue.LifoQueue()
        buffers = Buffers()
        self._workers = [MediaWorker(limits=self._limits, lend=buffers.lend) for _ in range(count)]
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def read_clip(
        self, data: bytes, *, name: str, layout: Layout, sidecar_audio: bytes | None = None, **how: Unpack[Reading]
    ) -> Clip:
        """As `arcvideo.media.clip.read_clip`, in another process; waits for a free one.

        Raises:
            MediaError: as there, and `timeout` past the deadline, `crashed` when the process died, both after the file
                was read again in a new process: a good clip is not given up because somebody killed its decoder.
        """
        from arcvideo.media.clip import as_clip, read_clip  # torch, which those who only examine files do without

        if not self._workers:
            return read_clip(data, name=name, layout=layout, sidecar_audio=sidecar_audio, limits=self._limits, **how)
        request = read_request(name=name, layout=layout, **how)
        worker = self._idle.get()
        try:
            arrays = worker.read(data, request=request, sidecar_audio=sidecar_audio)
            with _as_it_answers(name):
                return as_clip(arrays)
        finally:
            self._idle.put(worker)

    def examined(self, jobs: Iterable[ProbeJob | None]) -> Iterator[Probed | MediaError | None]:
        """Yield what `arcvideo.decoding.probe.examine` gives for each job, in their order; None for a job that is None.

        Who stops asking ends the processes that are busy.
        """
        if not self._workers:
            yield from map(self._examined_here, jobs)
            return
        threads = ThreadPoolExecutor(len(self._workers), "examine")
        waiting: deque[Future[Probed | MediaError | None]] = deque()
        try:
            for job in jobs:
                waiting.append(threads.submit(self._examined, job))
                while waiting and (waiting[0].done() or len(waiting) >= _AHEAD * len(self._workers)):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for worker in self._workers if waiting else ():
                worker.abandon()
            threads.shutdown()
            for worker in self._workers:
                worker.abandoned = False

    def _examined(self, job: ProbeJob | None) -> Probed | MediaError | None:
        if job is None:
            return None
        worker = self._idle.get()
        try:
            return worker.examine(job)
        except MediaError as error:
            return error
        finally:
            self._idle.put(worker)

    def _examined_here(self, job: ProbeJob | None) -> Probed | MediaError | None:
        try:
            return None if job is None else examine(job, limits=self._limits)
        except MediaError as error:
            return error
        except MemoryError:
            return MediaError("too_large", f"{job.main.name if job else ''}: out of memory while decoding")

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


@contextmanager
def _as_it_answers(name: str) -> Iterator[None]:
    """Blame the file for an answer that no decoder gives unless the file took it over."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise MediaError("crashed", f"{name}: the decoder answered nonsense ({error})") from None


class MediaWorker:
    """One decoding process and the parent's end of the socket to it; one question at a time."""

    def __init__(self, *, limits: MediaLimits, lend: wire.Lend | None = None) -> None:
        """Start nothing yet.

        Args:
            limits: of each file.
            lend: gives the memory of a clip; None takes new memory.
        """
        self._limits = limits
        self._lend = lend or Buffers(keep=0).lend
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._log: IO[bytes] | None = None
        self._owner = 0
        self.abandoned = False
        """Nobody waits for an answer any more, so no question is asked."""
        self._ended_by = 0
        """Signal that ended the last process which died, 0 for none."""

    def read(self, data: bytes, *, request: ReadRequest, sidecar_audio: bytes | None = None) -> ClipArrays:
        """Return the clip.

        Raises:
            MediaError: the one that the process met, or `timeout` or `crashed`, as often as a file is tried.
            NoDecoder: the process does not start, which is no fault of the file.
        """
        if len(data) > self._limits.max_bytes:  # not worth sending
            raise MediaError("too_large", f"{request.name}: {len(data)} bytes, the limit is {self._limits.max_bytes}")
        question = wire.read_question(data, request=request, sidecar_audio=sidecar_audio)
        head, body = self._answer(question, name=request.name)
        with _as_it_answers(request.name):
            return wire.answered_clip(head, body)

    def examine(self, job: ProbeJob) -> Probed:
        """Return what is to know of files.

        Raises:
            MediaError, NoDecoder: as `read` does.
        """
        head, _ = self._answer(wire.probe_question(job), name=job.main.name)
        with _as_it_answers(job.main.name):
            return wire.answered_probe(head)

    def close(self) -> None:
        """End the process, if there is one, after the question that it is asked."""
        with self._lock:
            self._end()

    def abandon(self) -> None:
        """End the process in the middle of a question, which is not asked again; any thread may call it."""
        self.abandoned = True
        process = self._process
        if process is not None and self._owner == os.getpid():
            process.kill()

    def _answer(self, question: wire.Message, *, name: str) -> tuple[dict[str, Any], np.ndarray]:
        """Return the answer, asked again where the process crashed, was killed, or did not answer in time."""
        tried = 0
        while True:
            try:
                head, body = self._asked(question, name=name)
                break
            except (MediaError, NoDecoder) as error:
                begun = isinstance(error, MediaError)  # else no file was read yet
                crashed = not isinstance(error, MediaError) or error.reason == "crashed"
                outside = crashed and self._ended_by in FROM_OUTSIDE
                tried += 1
                if self.abandoned or tried >= (TRIES_FROM_OUTSIDE if outside else TRIES if begun else 1):
                    raise
                if outside:
                    time.sleep(_PAUSE * 2 ** (tried - 1))
        error = wire.refused(head)
        if error is not None:
            raise error
        return head, body

    def _asked(self, question: wire.Message, *, name: str) -> tuple[dict[str, Any], np.ndarray]:
        with self._lock:
            peer = self._started()
            deadline = time.monotonic() + self._limits.deadline_seconds
            try:
                if self.abandoned:
                    raise EOFError
                wire.send(peer, question, deadline=deadline)
                most = self._limits.max_memory_bytes or _LARGEST_ANSWER
                head, body = wire.receive(peer, most=most, lend=self._lend, deadline=deadline)
                if head.get("last"):
                    self._end()
            except TimeoutError:
                self._end()
                self._ended_by = 0
                seconds = self._limits.deadline_seconds
                raise MediaError("timeout", f"{name}: not decoded within {seconds} s") from None
            except (ConnectionError, EOFError):
                raise MediaError("crashed", f"{name}: the decoder died ({self._post_mortem()})") from None
            except BaseException:
                self._end()  # an interrupt leaves a half-read answer in the socket
                raise
        return head, body

    def _started(self) -> socket.socket:
        """Return the socket to the running process; after a fork the parent's process is left alone and a new one is
        started.

        Raises:
            NoDecoder: it ended before it read anything, so no file is to blame.
        """
        if self._process is not None and self._owner == os.getpid():
            assert self._socket is not None
            if self._process.poll() is None:
                return self._socket
            self._end()
        self._ended_by = 0
        self._process, self._socket, self._log = _patiently_started(self._limits)
        self._owner = os.getpid()
        try:
            wire.receive(self._socket, most=0, lend=self._lend, deadline=time.monotonic() + _START_SECONDS)
        except (EOFError, TimeoutError, ConnectionError) as error:
            how = self._post_mortem()
            what = f"in {_START_SECONDS:g} s" if isinstance(error, TimeoutError) else f"({how})"
            if self._ended_by in FROM_OUTSIDE:
                what += ": it is ended from outside, mostly for want of memory; make room, then start this again"
            raise NoDecoder(f"the process that decodes media does not start {what}") from None
        return self._socket

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for end in (self._socket, self._log):
            if end is not None:
                end.close()

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
        self._ended_by = max(0, -code)
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return ": ".join([how, *lines[-1:]])


def _patiently_started(limits: MediaLimits) -> tuple[subprocess.Popen[bytes], socket.socket, IO[bytes]]:
    """As `_start`, tried again while others leave no room.

    Raises:
        NoDecoder: there is none.
    """
    for tried in range(TRIES_FROM_OUTSIDE):
        try:
            return _start(limits)
        except OSError as error:
            if error.errno not in _SCARCE or tried + 1 == TRIES_FROM_OUTSIDE:
                raise NoDecoder(f"the process that decodes media does not start: {error}") from None
        time.sleep(_PAUSE * 2**tried)
    raise AssertionError("the last try returns or raises")


def _start(limits: MediaLimits) -> tuple[subprocess.Popen[bytes], socket.socket, IO[bytes]]:
    """Return a new process, our end of the socket to it, and the file that it prints to.

    Raises:
        OSError: there is none: no memory, no descriptors, no place for its file.
    """
    # Not `multiprocessing`: it would run the user's script again, which may be what started us.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with ExitStack() as opened:
        log = opened.enter_context(tempfile.TemporaryFile())
        ours, theirs = socket.socketpair()
        opened.enter_context(ours)
        with theirs:
            process = subprocess.Popen(
                [*_COMMAND, json.dumps(asdict(limits))],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )
        opened.pop_all()  # as long as the process lives
    return process, ours, log
