"""What is asked: questions about clips, from shards or from a benchmark's files, in one order that never changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from arcvideo.bench import read_bench
from arcvideo.bench.item import BenchItem
from arcvideo.evaluation.answers import NO_SOUND
from arcvideo.evaluation.figures import choose, evenly, measured
from arcvideo.evaluation.settings import EvaluationSettings
from arcvideo.measuring.folder import Lost
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ShardIndex, ensure_indexes
from arcvideo.structured import SettingsError
from arcvideo.tasks import RecordError, make_sample
from arcvideo.types import Sample

ReadBytes = Callable[[], tuple[bytes, bytes | None]]
"""Reads a media file, and the sound file that belongs to it if there is one."""


@dataclass(frozen=True, kw_only=True)
class MeasuredQuestion:
    """One question, with its place among all of the measurement."""

    number: int
    sample: Sample
    tags: tuple[str, ...]
    fields: Mapping[str, Any] = field(repr=False)
    """The item of the record."""
    has_audio: bool = True
    """Whether its clip has sound, as far as that is known before it is read."""

    @property
    def key(self) -> str:
        return self.sample.key

    @property
    def task(self) -> str:
        return self.sample.task

    @property
    def instructed(self) -> bool:
        """Whether an instruction suffix asks for the answer format."""
        return self.sample.instructed


@dataclass(frozen=True, kw_only=True)
class Material:
    """One clip and everything that is asked about it."""

    number: int
    """Its place among the clips."""
    name: str
    questions: tuple[MeasuredQuestion, ...]
    read: ReadBytes | None = field(repr=False)
    """None for questions without media."""
    window: tuple[float, float] | None = None
    """Seconds of the file that are the clip."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Everything that a measurement asks."""

    name: str
    digest: str
    """Of the questions, their truths and their media."""
    materials: tuple[Material, ...]
    holes: tuple[Lost, ...] = ()
    """Questions that the benchmark has and that cannot be asked."""
    notes: tuple[str, ...] = ()
    source: str = ""

    @property
    def questions(self) -> Iterator[MeasuredQuestion]:
        """All questions, in order."""
        return (question for material in self.materials for question in material.questions)


def open_questions(settings: EvaluateSettings, *, style: str, progress: bool = True) -> Asking:
    """Read what is to be asked, without reading any media.

    Raises:
        ValueError: shards or a benchmark that are not there or hold no question of the wanted tasks.
    """
    if settings.reader == "shards":
        asking = _shards(settings.data, style=style, progress=progress)
    else:
        asking = _files(settings, style=style)
    every = asking.questions
    if settings.tasks or settings.items:
        asking = _limited(asking, tasks=settings.tasks, items=settings.items)
    if not any(True for _ in asking.questions):
        of = f" of the tasks {', '.join(settings.tasks)}" if settings.tasks else ""
        there = dict.fromkeys(question.task for question in every)
        of += f" (there are: {', '.join(there)})" if settings.tasks and there else ""
        more = f"; {len(asking.holes)} cannot be asked, the first: {asking.holes[0].detail}" if asking.holes else ""
        raise SettingsError(f"data={settings.data}: no question{of} can be asked{more}")
    return asking


def check_metrics(asking: Asking, *, metrics: Sequence[str], arms: Sequence[str]) -> None:
    """Refuse a figure that none of the questions would have, before the first of them is asked.

    Args:
        asking: the questions.
        metrics: figures that were asked for by name.
        arms: what they are asked in.

    Raises:
        ValueError: no question of its task, tag or kind, or an arm that is not asked.
    """
    if not metrics:
        return
    questions = list(asking.questions)
    chosen = choose(questions, settings=EvaluationSettings(metrics=list(metrics), items=0))
    for name in metrics:
        if not chosen[name]:
            tasks = ", ".join(dict.fromkeys(question.task for question in questions))
            tags = ", ".join(sorted({tag for question in questions for tag in question.tags}))
            raise SettingsError(
                f"metrics has {name!r}, which none of these questions has; their tasks: {tasks}; tags: {tags or 'none'}"
            )
        if measured(name)[1].silent and NO_SOUND not in arms:
            raise SettingsError(f"metrics has {name!r}, which is measured without sound: add arms={NO_SOUND}")


def _limited(asking: Asking, *, tasks: Sequence[str], items: int) -> Asking:
    """Only some of the questions, spread over the set."""
    questions = [question for question in asking.questions if not tasks or question.task in tasks]
    wanted = {question.key for question in questions}
    if items:
        by_task = list(dict.fromkeys(question.task for question in questions))
        chosen = [
            evenly([question.key for question in questions if question.task == name], limit=items) for name in by_task
        ]
        wanted = {key for keys in chosen for key in keys}
    materials = (
        replace(material, questions=tuple(question for question in material.questions if question.key in wanted))
        for material in asking.materials
    )
    return replace(asking, materials=tuple(material for material in materials if material.questions))


def _shards(pattern: str, *, style: str, progress: bool) -> Asking:
    indexes = ensure_indexes(expand_shards(pattern), progress=progress)
    materials: list[Material] = []
    holes: list[Lost] = []
    number = 0
    for index in indexes:
        holes += [
            Lost(key=problem.key, reason=problem.reason, detail=problem.detail or problem.stage)
            for problem in index.problems()
        ]
        for row in range(len(index.clips)):
            if index.media_count(row) > 1:
                detail = "a stage's own evaluation asks about several media, this command about one"
                holes.append(Lost(key=index.key(row), reason="several_media", detail=detail))
                continue
            try:
                made = tuple(_of_record(index, row, style=style, first=number))
            except RecordError as error:
                holes.append(Lost(key=index.key(row), reason=error.reason, detail=error.detail))
                continue
            number += len(made)
            if made:
                has_media = bool(index.clips[row]["media_size"])
                read = partial(index.media_bytes, row) if has_media else None
                materials.append(Material(number=len(materials), name=index.key(row), questions=made, read=read))
    _refuse_twice(materials)
    digest = hashlib.sha256("".join(index.digest for index in indexes).encode()).hexdigest()
    return Asking(name="shards", digest=digest, materials=tuple(materials), holes=tuple(holes), source=pattern)


def _of_record(index: ShardIndex, row: int, *, style: str, first: int) -> Iterator[MeasuredQuestion]:
    clip, key = index.clips[row], index.key(row)
    record = index.record(row)
    start, count = int(clip["item_start"]), int(clip["item_count"])
    media_key = key if clip["media_size"] else None
    for place, facts in enumerate(index.items[start : start + count]):
        item = record["items"][int(facts["number"])]
        sample = make_sample(item, key=f"{key}/{int(facts['number'])}", media_key=media_key, style=style)
        yield MeasuredQuestion(
            number=first + place,
            sample=sample,
            tags=tuple(index.tagsets[facts["tagset"]]),
            fields=item,
            has_audio=bool(clip["sound_samples"]),
        )


def _refuse_twice(materials: Sequence[Material]) -> None:
    seen: set[str] = set()
    for material in materials:
        if material.name in seen:
            raise SettingsError(f"data: two shards have a record {material.name!r}; measure them one by one")
        seen.add(material.name)


def _files(settings: EvaluateSettings, *, style: str) -> Asking:
    """Return the questions of a benchmark, those about one clip together."""
    folder = Path(settings.data)
    bench = read_bench(settings.bench, folder, **settings.option)
    holes = [Lost(key=hole.id, reason=hole.reason, detail=hole.detail) for hole in bench.holes]
    digest = hashlib.sha256()
    clips: dict[tuple[Path, tuple[float, float] | None], list[MeasuredQuestion]] = {}
    for number, item in enumerate(bench.items):
        name = _clip_name(item, folder=folder)
        digest.update(json.dumps(_identity(item, name=name), sort_keys=True, default=str).encode())
        try:
            sample = make_sample(_asked(item), key=item.id, media_key=name, style=style)
        except RecordError as error:
            holes.append(Lost(key=item.id, reason=error.reason, detail=error.detail))
            continue
        question = MeasuredQuestion(number=number, sample=sample, tags=item.tags, fields=item.fields)
        clips.setdefault((item.clip, item.window), []).append(question)
    materials = tuple(
        Material(
            number=number,
            name=questions[0].sample.media_key or "",
            questions=tuple(questions),
            read=partial(_file_bytes, path),
            window=window,
        )
        for number, ((path, window), questions) in enumerate(clips.items())
    )
    return Asking(
        name=bench.name,
        digest=digest.hexdigest(),
        materials=materials,
        holes=tuple(holes),
        notes=bench.notes,
        source=bench.source,
    )


def _file_bytes(path: Path) -> tuple[bytes, bytes | None]:
    return path.read_bytes(), None


def _clip_name(item: BenchItem, *, folder: Path) -> str:
    """Return the clip's file below the folder, with its window."""
    root = folder.expanduser().absolute()
    name = item.clip.relative_to(root).as_posix() if item.clip.is_relative_to(root) else item.clip.as_posix()
    return name if item.window is None else f"{name}@{item.window[0]:g}-{item.window[1]:g}"


def _identity(item: BenchItem, *, name: str) -> dict[str, Any]:
    """Return what the answer to an item depends on; the media count by their size, what was seen of them is on the
    card.
    """
    size = item.clip.stat().st_size if item.clip.is_file() else None
    return {
        "id": item.id, "clip": name, "size": size, "task": item.task, "fields": dict(item.fields), "tags": item.tags,
        "subtitles": item.subtitles,
    }  # fmt: skip


def _asked(item: BenchItem) -> dict[str, Any]:
    """Return the item of a record, with the subtitles in front of its question."""
    fields = {"task": item.task, **item.fields}
    if item.subtitles:
        fields["question"] = f"Subtitles of the video:\n{item.subtitles}\n{fields.get('question', '')}"
    return fields
