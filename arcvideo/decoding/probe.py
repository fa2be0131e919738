"""What the index needs to know of a record's media before training: length, picture or not, sound or not, content.

`examine` does it here; a `ProbePool` does it in processes that a broken file may hang or crash without harm.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType

from arcvideo.decoding.tries import FROM_OUTSIDE, TRIES, TRIES_FROM_OUTSIDE
from arcvideo.media.decode import decode
from arcvideo.media.errors import MediaError
from arcvideo.media.picture import Selection, VideoFacts
from arcvideo.media.read import media_digest
from arcvideo.media.settings import MediaLimits
from arcvideo.media.sound import SAMPLE_RATE

_START_SECONDS = 120.0
"""Time a new process has to import what it needs."""
_READY = b"ready\n"
_COMMAND = (sys.executable, "-m", "arcvideo.decoding.probe")
_AHEAD = 4
"""Files under way or waiting for an earlier one, per process."""


@dataclass(frozen=True, kw_only=True)
class MediaFacts:
    """Facts of one media file."""

    duration: float
    """Seconds: of the picture (frames / average rate, or by their times), else samples of the sound."""
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
        """Return the bytes.

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
    """Return the facts that decoding the file will find, from the same code; the sound is decoded, pictures are only
    counted.

    Raises:
        MediaError: the file cannot be read.
    """
    decoded = decode(data, name=name, choose=_no_frames, limits=limits or MediaLimits())
    samples = 0 if decoded.waveform is None else decoded.waveform.size
    if decoded.facts is not None:
        duration = decoded.facts.duration
    elif samples:
        duration = samples / SAMPLE_RATE
    else:
        raise MediaError("no_media", f"{name}: its sound stream holds no samples")
    return MediaFacts(duration=duration, has_video=decoded.facts is not None, sound_samples=samples)


def examine(job: ProbeJob, *, limits: MediaLimits | None = None) -> Probed:
    """Read and probes a record's media in this process.

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

    process: subprocess.Popen[bytes]
    job: ProbeJob | None = None
    number: int = -1
    tried: int = 0
    """Times that the job was given to a process before."""
    deadline: float = 0.0

    def fileno(self) -> int:
        """Return where its answers come from."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def send(self, job: ProbeJob) -> None:
        """Hand it a job; a process that has died meanwhile is noticed when its answer is read."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(_job_line(job))
            self.process.stdin.flush()

    def receive(self) -> Probed | MediaError:
        """Its answer.

        Raises:
            EOFError: it has died.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return _read_answer(line)

    def was_killed(self) -> bool:
        """Return whether somebody ended it, which is not the fault of its file."""
        with suppress(subprocess.TimeoutExpired):
            return -self.process.wait(timeout=1.0) in FROM_OUTSIDE
        return False

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@dataclass(kw_only=True)
class ProbePool:
    """`examine` in `count` processes, in order; a file that hangs or kills its process costs one MediaError.

    With count 0 everything happens in this process, unprotected.
    """

    count: int = 0
    limits: MediaLimits = field(default_factory=MediaLimits)
    _probers: list[_Prober] = field(default_factory=list)

    def map(self, jobs: Iterable[ProbeJob | None]) -> Iterator[Probed | MediaError | None]:
        """Yield the result of each job, in the order of the jobs; None for a job that is None."""
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
        """End the processes."""
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

    def _give(self, number: int, job: ProbeJob, *, tried: int = 0) -> None:
        """Hand a job to an idle process, or to a new one."""
        prober = next((prober for prober in self._probers if prober.job is None), None)
        if prober is None:
            prober = self._started()
            self._probers.append(prober)
        prober.number, prober.job, prober.tried = number, job, tried
        prober.deadline = time.monotonic() + self.limits.deadline_seconds
        prober.send(job)

    def _started(self) -> _Prober:
        """Return a new process. Not `multiprocessing`: it would run the user's script again, which may be what started
        us.
        """
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [*_COMMAND, json.dumps(asdict(self.limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        prober = _Prober(process=process)
        if not wait([prober.fileno()], timeout=_START_SECONDS) or process.stdout.readline() != _READY:  # type: ignore[union-attr]
            prober.end()
            raise RuntimeError(f"the process that examines media does not start (exit status {process.returncode})")
        return prober

    def _collect(self) -> dict[int, Probed | MediaError]:
        """Wait until a process has answered, died or run out of time; the results by number."""
        busy = [prober for prober in self._probers if prober.job is not None]
        patience = min(prober.deadline for prober in busy) - time.monotonic()
        ready = wait([prober.fileno() for prober in busy], timeout=max(0.0, patience))
        results: dict[int, Probed | MediaError] = {}
        for prober in busy:
            job = prober.job
            assert job is not None
            if prober.fileno() in ready:
                try:
                    results[prober.number] = prober.receive()
                    prober.job = None
                    continue
                except EOFError:
                    tries = TRIES_FROM_OUTSIDE if prober.was_killed() else TRIES
                    error = MediaError("crashed", f"{job.main.name}: the decoder died")
            elif time.monotonic() < prober.deadline:
                continue
            else:
                seconds, tries = self.limits.deadline_seconds, TRIES
                error = MediaError("timeout", f"{job.main.name}: not examined within {seconds} s")
            prober.end()
            self._probers.remove(prober)
            if prober.tried + 1 < tries:
                self._give(prober.number, job, tried=prober.tried + 1)
            else:
                results[prober.number] = error
        return results


def _serve(limits: MediaLimits) -> None:
    """The probing process: a job a line, an answer a line, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    if limits.max_memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (limits.max_memory_bytes, limits.max_memory_bytes))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    answers.write(_READY)
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(_answer_line(_answer(_read_job(line), limits=limits)))
        answers.flush()


def _job_line(job: ProbeJob) -> bytes:
    rows = [None if part is None else {**vars(part), "path": str(part.path)} for part in (job.main, job.sound)]
    return json.dumps(rows).encode() + b"\n"


def _read_job(line: bytes) -> ProbeJob:
    main, sound = (row and Extent(**{**row, "path": Path(row["path"])}) for row in json.loads(line))
    return ProbeJob(main=main, sound=sound)


def _answer_line(result: Probed | MediaError) -> bytes:
    if isinstance(result, MediaError):
        return json.dumps({"reason": result.reason, "detail": result.detail}).encode() + b"\n"
    row = {"facts": vars(result.facts), "uses_sound": result.uses_sound, "digest": result.digest.hex()}
    return json.dumps(row).encode() + b"\n"


def _read_answer(line: bytes) -> Probed | MediaError:
    row = json.loads(line)
    if "reason" in row:
        return MediaError(row["reason"], row["detail"])
    return Probed(facts=MediaFacts(**row["facts"]), uses_sound=row["uses_sound"], digest=bytes.fromhex(row["digest"]))


def _answer(job: ProbeJob, *, limits: MediaLimits) -> Probed | MediaError:
    try:
        return examine(job, limits=limits)
    except MediaError as error:
        return error
    except MemoryError:
        return MediaError("too_large", f"{job.main.name}: needs more memory than {limits.max_memory_bytes} bytes")


if __name__ == "__main__":
    _serve(MediaLimits(**json.loads(sys.argv[1])))
