"""What the index needs to know of a record's media before training: length, picture or not, sound or not, content.

`examine` does it here; a `ProbePool` does it in processes that a broken file may hang or crash without harm.
"""

from __future__ import annotations

import resource
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

from arcvideo.media.decode import SAMPLE_RATE, Selection, VideoFacts, decode
from arcvideo.media.errors import MediaError
from arcvideo.media.read import media_digest
from arcvideo.media.settings import MediaLimits

_START_SECONDS = 120.0
"""Time a new process has to import what it needs, on top of the deadline of its first file."""
_AHEAD = 4
"""Files under way or waiting for an earlier one, per process."""


@dataclass(frozen=True, kw_only=True)
class MediaFacts:
    """Facts of one media file."""

    duration: float
    """Seconds: frames / average rate of the picture, else samples of the sound."""
    has_video: bool
    sound_samples: int
    """Samples at 16 kHz; 0 without sound."""


NO_MEDIA = MediaFacts(duration=0.0, has_video=False, sound_samples=0)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A media file: a file of its own, or a part of a shard."""

    path: Path
    name: str
    """For messages."""
    offset: int = 0
    size: int | None = None
    """Bytes; None reads to the end."""

    def read(self) -> bytes:
        """The bytes.

        Raises:
            MediaError: `unreadable`, `truncated`.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset)
                data = file.read() if self.size is None else file.read(self.size)
        except OSError as error:
            raise MediaError("unreadable", f"{self.name}: {error}") from error
        if self.size is not None and len(data) != self.size:
            raise MediaError("truncated", f"{self.name}: {self.size} bytes expected, {len(data)} read")
        return data


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """A record's media: a picture or a sound, and a sound that is used when the first file has none."""

    main: Extent
    sound: Extent | None = None


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What was found."""

    facts: MediaFacts
    uses_sound: bool
    """The job's separate sound is part of the clip."""
    digest: bytes
    """32 bytes that name the content of the files used."""


def probe(data: bytes, *, name: str, limits: MediaLimits | None = None) -> MediaFacts:
    """The facts that decoding the file will find, from the same code; the sound is decoded, pictures are only counted.

    Raises:
        MediaError: the file cannot be read.
    """
    found = decode(data, name=name, choose=_no_frames, limits=limits or MediaLimits())
    samples = 0 if found.waveform is None else found.waveform.size
    if found.facts is not None:
        duration = found.facts.frame_count / found.facts.fps
    elif samples:
        duration = samples / SAMPLE_RATE
    else:
        raise MediaError("no_media", f"{name}: its sound stream holds no samples")
    return MediaFacts(duration=duration, has_video=found.facts is not None, sound_samples=samples)


def examine(job: ProbeJob, *, limits: MediaLimits | None = None) -> Probed:
    """Reads and probes a record's media in this process.

    Raises:
        MediaError: a file that is needed cannot be read.
    """
    data = job.main.read()
    facts = probe(data, name=job.main.name, limits=limits)
    if job.sound is None or facts.sound_samples:
        return Probed(facts=facts, uses_sound=False, digest=media_digest(data))
    track = job.sound.read()
    samples = probe(track, name=job.sound.name, limits=limits).sound_samples
    if not samples:
        raise MediaError("no_media", f"{job.sound.name}: has no sound")
    joined = MediaFacts(duration=facts.duration, has_video=facts.has_video, sound_samples=samples)
    return Probed(facts=joined, uses_sound=True, digest=media_digest(data, sidecar_audio=track))


def _no_frames(facts: VideoFacts) -> Selection:
    return Selection(indices=())


@dataclass(kw_only=True)
class _Prober:
    """One probing process and what it is busy with."""

    process: BaseProcess
    pipe: Connection
    job: ProbeJob | None = None
    number: int = -1
    deadline: float = 0.0
    warm: bool = False

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass(kw_only=True)
class ProbePool:
    """`examine` in `count` processes, in order; a file that hangs or kills its process costs one MediaError.

    With count 0 everything happens in this process, unprotected.
    """

    count: int = 0
    limits: MediaLimits = field(default_factory=MediaLimits)
    _probers: list[_Prober] = field(default_factory=list)

    def map(self, jobs: Iterable[ProbeJob | None]) -> Iterator[Probed | MediaError | None]:
        """The result of each job, in the order of the jobs; None for a job that is None."""
        if not self.count:
            for job in jobs:
                yield None if job is None else _answer(job, limits=self.limits)
            return
        todo = enumerate(jobs)
        order: deque[int] = deque()
        done: dict[int, Probed | MediaError | None] = {}
        exhausted = False
        while not exhausted or order:
            while not exhausted and len(order) < _AHEAD * self.count and self._has_room():
                number, job = next(todo, (-1, None))
                if number < 0:
                    exhausted = True
                    break
                order.append(number)
                if job is None:
                    done[number] = None
                else:
                    self._give(number, job)
            while order and order[0] in done:
                yield done.pop(order.popleft())
            if order:
                done.update(self._collect())

    def close(self) -> None:
        """Ends the processes."""
        for prober in self._probers:
            prober.end()
        self._probers = []

    def __enter__(self) -> ProbePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _has_room(self) -> bool:
        return len(self._probers) < self.count or any(prober.job is None for prober in self._probers)

    def _give(self, number: int, job: ProbeJob) -> None:
        """Hands a job to an idle process, or to a new one."""
        prober = next((prober for prober in self._probers if prober.job is None), None)
        if prober is None:
            prober = self._started()
            self._probers.append(prober)
        prober.number, prober.job = number, job
        prober.deadline = time.monotonic() + self.limits.deadline_seconds + (0 if prober.warm else _START_SECONDS)
        prober.pipe.send(job)

    def _started(self) -> _Prober:
        context = get_context("spawn")  # forking a process that already runs threads can deadlock
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.limits), daemon=True)
        process.start()
        theirs.close()
        return _Prober(process=process, pipe=ours)

    def _collect(self) -> dict[int, Probed | MediaError]:
        """Waits until a process has answered, died or run out of time; the results by number."""
        busy = [prober for prober in self._probers if prober.job is not None]
        patience = min(prober.deadline for prober in busy) - time.monotonic()
        ready = wait([prober.pipe for prober in busy], timeout=max(0.0, patience))
        found: dict[int, Probed | MediaError] = {}
        for prober in busy:
            assert prober.job is not None
            name = prober.job.main.name
            if prober.pipe in ready:
                try:
                    found[prober.number] = prober.pipe.recv()
                    prober.job, prober.warm = None, True
                    continue
                except (EOFError, OSError):
                    found[prober.number] = MediaError("crashed", f"{name}: the decoder died")
            elif time.monotonic() < prober.deadline:
                continue
            else:
                seconds = self.limits.deadline_seconds
                found[prober.number] = MediaError("timeout", f"{name}: not examined within {seconds} s")
            prober.end()
            self._probers.remove(prober)
        return found


def _serve(pipe: Connection, limits: MediaLimits) -> None:
    """The probing process: answers until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    if limits.max_memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (limits.max_memory_bytes, limits.max_memory_bytes))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(job, limits=limits))


def _answer(job: ProbeJob, *, limits: MediaLimits) -> Probed | MediaError:
    try:
        return examine(job, limits=limits)
    except MediaError as error:
        return error
    except MemoryError:
        return MediaError("too_large", f"{job.main.name}: needs more memory than {limits.max_memory_bytes} bytes")
