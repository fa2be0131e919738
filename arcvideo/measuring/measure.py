"""One measurement from its settings to its scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from arcvideo.decoding.pool import MediaPool
from arcvideo.evaluation.answers import FULL
from arcvideo.lineage.code import evaluation_code
from arcvideo.lineage.lock import alone_in
from arcvideo.measuring.answering.models import Measured, open_model
from arcvideo.measuring.arms import OtherSounds, arm_clip
from arcvideo.measuring.clock import prove_times
from arcvideo.measuring.folder import (
    Journal,
    asked_before,
    open_measurement,
    read_answers,
    read_card,
    write_card,
)
from arcvideo.measuring.questions import Asking, Material, check_metrics, open_questions
from arcvideo.measuring.read import Read, Reader, read_ahead
from arcvideo.measuring.scores import score_folder
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.media.frames import STAMP_VERSION
from arcvideo.processes.ranks import World, barrier, join
from arcvideo.progress import watched
from arcvideo.seals import digest_of

Left = list[tuple[Material, Mapping[str, tuple[str, ...]]]]
"""Clips with the arms in which each of their questions is left to ask."""


def measure(settings: EvaluateSettings) -> tuple[Path, dict[str, Any] | None]:
    """Ask what is not answered yet and score it; return the folder and, on rank 0, the scores.

    Raises:
        ValueError: settings, weights or questions that cannot be used, or a folder that holds another measurement.
        OSError: an endpoint that gives no answer, or a disk that refuses.
    """
    world = join()
    device = torch.device(settings.device) if settings.device else world.device
    model = open_model(settings, device=device)
    asking = open_questions(settings, style=model.style, progress=world.first)
    check_metrics(asking, metrics=settings.metrics, arms=settings.arms)
    origin = _origin(model, asking=asking)
    name = settings.name or f"{asking.name}-{digest_of(origin)[:8]}"
    folder = Path(settings.out) / name
    with alone_in(folder) if world.first else nullcontext():
        if world.first:
            open_measurement(folder, origin=origin, facts=_facts(settings, model=model, asking=asking))
        barrier(world=world)
        with MediaPool(count=settings.workers) as pool:
            reader = Reader(
                read_clip=pool.read_clip, layout=model.layout, font=settings.font or None, arms=settings.arms
            )
            _ask(settings, model=model, asking=asking, reader=reader, folder=folder, world=world)
        barrier(world=world)
        if not world.first:
            return folder, None
        _finish_card(folder)
        return folder, score_folder(folder, metrics=settings.metrics, bootstrap=settings.bootstrap, seed=settings.seed)


def _origin(model: Measured, *, asking: Asking) -> dict[str, Any]:
    """Return everything that decides the answers, but for the arms: more of them may be asked later."""
    code = evaluation_code()
    parsers = {name: digest for name, digest in code.items() if name.startswith("arcvideo.tasks")}
    return {
        **model.origin,
        "questions": asking.digest,
        "keys": digest_of([question.key for question in asking.questions]),
        "parser": digest_of(parsers)[:16],
        "decoder": f"pyav {version('av')}, stamps {STAMP_VERSION}",
    }


def _facts(settings: EvaluateSettings, *, model: Measured, asking: Asking) -> dict[str, Any]:
    """Return what else a card says."""
    return {
        "bench": asking.name,
        "source": asking.source,
        "notes": list(asking.notes),
        "data": settings.data,
        "checkpoint": settings.checkpoint or settings.endpoint,
        "settings": asdict(settings),
        "scoring": {"metrics": settings.metrics, "bootstrap": settings.bootstrap, "seed": settings.seed},
        "prompt": model.first_prompt(next(asking.questions)),
        "holes": [asdict(hole) for hole in asking.holes],
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _ask(
    settings: EvaluateSettings, *, model: Measured, asking: Asking, reader: Reader, folder: Path, world: World
) -> None:
    """Ask this rank's share of what is left."""
    answered, lost = asked_before(folder)
    mine = _share(asking.materials, rank=world.rank, ranks=world.size)
    left = _left(mine, arms=settings.arms, answered=answered, lost=lost)
    if not left:
        return
    if settings.proof:
        proof = prove_times(reader.read_clip, layout=model.layout, font=reader.font)
        if world.first:
            write_card(folder, {**read_card(folder), "proof_of_time": proof})
    model.load()
    others = OtherSounds(asking.materials, hear=reader.sound)
    with Journal(folder, rank=world.rank) as journal:
        clips = read_ahead(left, reader=reader, others=others, workers=settings.workers)
        shown = watched(clips, what="evaluating", total=len(left), unit="clip") if world.first else clips
        spent = {"read": 0.0}
        for answers, seconds in model.ask(_noted(shown, journal=journal, model=model, spent=spent)):
            journal.add(answers, seconds={**seconds, **spent})
            spent["read"] = 0.0


def _noted(clips: Iterator[Read], *, journal: Journal, model: Measured, spent: dict[str, float]) -> Iterator[Read]:
    """Write down what was seen of each clip, and which of its questions cannot be asked."""
    for read in clips:
        spent["read"] += read.seconds
        journal.lose(read.lost)
        if read.material.questions:
            times = [] if read.seen is None else read.seen.clip.frame_times.tolist()
            for arm in _idle_arms(read):
                keys = [
                    question.key for question in read.material.questions if arm in read.wanted.get(question.key, ())
                ]
                journal.skip(arm, keys=keys)
            journal.note(read.material.name, frame_times=times, prompts=model.prompts_digest(read))
            yield read


def _idle_arms(read: Read) -> list[str]:
    """Return the arms that are wanted of a clip and that would change nothing in it."""
    wanted = dict.fromkeys(arm for question in read.material.questions for arm in read.wanted.get(question.key, ()))
    if read.seen is None:
        return []
    return [arm for arm in wanted if arm_clip(read.seen, arm=arm, other=read.other) is None]


def _share(materials: Sequence[Material], *, rank: int, ranks: int) -> Sequence[Material]:
    """Return a rank's clips: neighbours, so that the sound of the clip before is at hand."""
    return materials[len(materials) * rank // ranks : len(materials) * (rank + 1) // ranks]


def _left(
    materials: Sequence[Material], *, arms: Sequence[str], answered: set[tuple[str, str]], lost: set[str]
) -> Left:
    """Return the clips about which something is left to ask."""
    left: Left = []
    for material in materials:
        possible = arms if material.read is not None else [FULL]
        wanted = {
            question.key: tuple(arm for arm in possible if (arm, question.key) not in answered)
            for question in material.questions
            if question.key not in lost
        }
        questions = tuple(question for question in material.questions if wanted.get(question.key))
        if questions:
            left.append((replace(material, questions=questions), wanted))
    return left


def _finish_card(folder: Path) -> None:
    """Add to the card what is only known at the end: digests of all prompts and frame times, and the time it took."""
    measurement = read_answers(folder)
    clips = sorted(measurement.clips.items())
    video = measurement.seconds.get("video", 0.0)
    card = read_card(folder)
    card["finished"] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "prompts": hashlib.sha256("".join(clip["prompts"] for _, clip in clips).encode()).hexdigest(),
        "frame_times": digest_of([[name, clip["frame_times"]] for name, clip in clips]),
        "clips": len(clips),
        "answers": len(measurement.answers),
        "seconds": {name: round(value, 3) for name, value in measurement.seconds.items()},
        "seconds_per_minute_of_video": {
            name: round(60 * value / video, 3)
            for name, value in measurement.seconds.items()
            if name != "video" and video
        },
    }
    write_card(folder, card)
