"""The index of a remote shard, made while its bytes stream by: each is read once, and none is kept."""

from __future__ import annotations

import io
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from arcvideo.decoding.pool import MediaPool
from arcvideo.decoding.probe import Extent, Probed, ProbeJob
from arcvideo.media.errors import MediaError
from arcvideo.progress import counted
from arcvideo.remote.links import Link
from arcvideo.remote.origin import Changed
from arcvideo.remote.reading import changed, confirm, opened_stream
from arcvideo.remote.stream import Stream
from arcvideo.shards.columns import Columns
from arcvideo.shards.members import OTHER, Grouping, Member, Problem, RecordMembers, streamed_members
from arcvideo.shards.record import probe_jobs


def streamed_columns(shard: Path, link: Link, *, pool: MediaPool, progress: bool) -> Columns:
    """Return what the index of a remote shard holds, with the records' JSON.

    Raises:
        ValueError: it cannot be read, or changed meanwhile, or there is no room for the clips that are being examined.
    """
    scratch = shard.with_name(f".{shard.name}.passing")  # the lock of the index leaves one writer
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
    with counted(what=shard.name, total=link.identity.size, unit="B", quiet=not progress) as advance:
        stream = opened_stream(shard, link, advance=advance)
        passing = _Passing(stream, shard=shard, scratch=scratch, pool=pool)
        try:
            scratch.mkdir()
            columns = passing.columns()
        except OSError as error:
            raise ValueError(f"{scratch.parent}: cannot hold the clips that are being examined: {error}") from error
        except Changed as error:
            raise changed(shard, link, str(error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    confirm(shard, link)
    return columns


class _Passing:
    """Records between the stream and the processes that examine them; their media lie in files meanwhile."""

    def __init__(self, stream: Stream, *, shard: Path, scratch: Path, pool: MediaPool) -> None:
        self._stream, self._shard, self._scratch, self._pool = stream, shard, scratch, pool
        self._grouping = Grouping()
        self._texts: dict[int, bytes] = {}
        """Place in the shard -> JSON."""
        self._examined: deque[tuple[RecordMembers, int]] = deque()
        """Records whose jobs were given out, and how many, in order."""

    def columns(self) -> Columns:
        examined: dict[int, list[Probed | MediaError | None]] = {}
        answers: list[Probed | MediaError | None] = []
        for answer in self._pool.examined(self._jobs()):
            answers.append(answer)
            group, jobs = self._examined[0]
            if len(answers) == jobs:
                self._examined.popleft()
                examined[group.members[0].offset], answers = answers, []
                for member in group.members:
                    self._place(member).unlink(missing_ok=True)
        good, problems = self._grouping.records()
        columns = Columns(problems=problems, texts=bytearray())
        for group in good:
            columns.add(group, read=lambda member: self._texts[member.offset], probed=examined[group.members[0].offset])
        return columns

    def _jobs(self) -> Iterator[ProbeJob | None]:
        """Yield what to examine, as the stream comes to it."""
        for member in streamed_members(self._stream, shard=self._shard):
            if not isinstance(member, Problem):
                self._keep(member)
            ended = self._grouping.add(member)
            if ended is not None:
                yield from self._given(ended)
        if self._grouping.last is not None:
            yield from self._given(self._grouping.last)

    def _given(self, group: RecordMembers) -> list[ProbeJob | None]:
        jobs = [self._here(job) for job in probe_jobs(group, shard=self._shard)]
        self._examined.append((group, len(jobs)))
        return jobs

    def _keep(self, member: Member) -> None:
        """Read a member's bytes before the stream has passed them."""
        if member.extension == "json":
            text = io.BytesIO()
            self._stream.copy(member.offset, member.size, into=text)
            self._texts[member.offset] = text.getvalue()
        elif member.extension.rpartition(".")[2] not in OTHER:
            with open(self._place(member), "wb") as file:
                self._stream.copy(member.offset, member.size, into=file)

    def _here(self, job: ProbeJob | None) -> ProbeJob | None:
        """Return the job with the files that its media lie in now."""
        if job is None:
            return None
        sound = None if job.sound is None else self._moved(job.sound)
        return ProbeJob(main=self._moved(job.main), sound=sound)

    def _moved(self, extent: Extent) -> Extent:
        return replace(extent, path=self._scratch / str(extent.offset), offset=0)

    def _place(self, member: Member) -> Path:
        return self._scratch / str(member.offset)
