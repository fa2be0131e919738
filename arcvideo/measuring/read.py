"""Clips of a measurement, decoded ahead of the model in processes that may die."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from arcvideo.layout import MediaLayout
from arcvideo.measuring.arms import OtherSounds, Seen, split_bare
from arcvideo.measuring.folder import Lost
from arcvideo.measuring.questions import Material, MeasuredQuestion
from arcvideo.measuring.settings import NO_STAMPS, OTHER_SOUND
from arcvideo.media.errors import MediaError
from arcvideo.tasks.fields import RecordError, check_times


@dataclass(frozen=True, kw_only=True)
class Read:
    """A clip that is ready to be asked about, or what keeps it from being."""

    material: Material
    """With the questions that are left to ask."""
    wanted: Mapping[str, tuple[str, ...]]
    """Key of a question -> arms in which it is left to ask."""
    seen: Seen | None
    """None without media."""
    other: Tensor | None
    """(n,) sound of another clip, where an arm wants one."""
    lost: tuple[Lost, ...]
    seconds: float
    """That decoding took."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How clips are read."""

    read_clip: Any
    """`MediaPool.read_clip`, or `media.clip.read_clip`."""
    layout: MediaLayout
    font: str | None
    arms: Sequence[str]

    def seen(self, material: Material) -> Seen | None:
        """Return the decoded clip; None without media.

        Raises:
            MediaError, OSError: a file that cannot be read.
        """
        if material.read is None:
            return None
        bare = NO_STAMPS in self.arms
        return split_bare(self._clip(material, layout=self.layout, bare=bare), bare=bare)

    def sound(self, material: Material) -> Tensor | None:
        """Return the sound of a clip; None when it has none or cannot be read."""
        if material.read is None:
            return None
        try:
            waveform: Tensor | None = self._clip(
                material, layout=replace(self.layout, max_frames=1), bare=False
            ).waveform
        except (MediaError, OSError):
            return None
        return waveform

    def _clip(self, material: Material, *, layout: MediaLayout, bare: bool) -> Any:
        assert material.read is not None
        data, sound = material.read()
        return self.read_clip(
            data, name=material.name, layout=layout, sidecar_audio=sound, font=self.font, window=material.window,
            bare=bare,
        )  # fmt: skip

    def clip(self, material: Material, wanted: Mapping[str, tuple[str, ...]]) -> Read:
        """Read one clip, whatever becomes of it."""
        began = time.perf_counter()
        lost: list[Lost] = []
        seen = None
        questions = material.questions
        try:
            seen = self.seen(material)
            if seen is not None:
                lost = list(_outside(questions, seconds=seen.clip.duration))
        except MediaError as error:
            lost = [Lost(key=question.key, reason=error.reason, detail=error.detail) for question in questions]
        except OSError as error:
            lost = [Lost(key=question.key, reason="unreadable", detail=str(error)) for question in questions]
        gone = {hole.key for hole in lost}
        left = replace(material, questions=tuple(question for question in questions if question.key not in gone))
        return Read(material=left, wanted=wanted, seen=seen, other=None, lost=tuple(lost),
                    seconds=time.perf_counter() - began)  # fmt: skip


def _outside(questions: Sequence[MeasuredQuestion], *, seconds: float) -> Iterator[Lost]:
    """Yield questions about times that the clip does not have."""
    for question in questions:
        try:
            check_times(question.fields, seconds=seconds)
        except RecordError as error:
            yield Lost(key=question.key, reason=error.reason, detail=error.detail)


def read_ahead(
    left: Sequence[tuple[Material, Mapping[str, tuple[str, ...]]]],
    *,
    reader: Reader,
    others: OtherSounds,
    workers: int,
) -> Iterator[Read]:
    """Yield the clips in order, the next ones being decoded meanwhile.

    Args:
        left: clips with the arms in which each of their questions is left to ask.
        reader: how they are read.
        others: where the sounds of other clips come from.
        workers: clips decoded at a time.
    """
    waiting: deque[Future[Read]] = deque()
    places = iter(left)
    with ThreadPoolExecutor(workers, "clips") as threads:
        for material, wanted in places:
            waiting.append(threads.submit(reader.clip, material, wanted))
            if len(waiting) > workers:
                yield _with_other(waiting.popleft().result(), others=others)
        while waiting:
            yield _with_other(waiting.popleft().result(), others=others)


def _with_other(read: Read, *, others: OtherSounds) -> Read:
    arms = {arm for arms in read.wanted.values() for arm in arms}
    other = None
    if OTHER_SOUND in arms and read.seen is not None and read.seen.clip.waveform is not None:
        other = others.of(read.material)
    if read.seen is not None:
        others.remember(read.material, read.seen.clip.waveform)
    return replace(read, other=other)
