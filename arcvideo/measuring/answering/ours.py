"""A checkpoint of ours as what is measured: every clip encoded once for all its questions and arms."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arcvideo.evaluation.answers import FULL, Answer
from arcvideo.evaluation.evaluate import FRAMES_TOGETHER, Asked, answered
from arcvideo.feed.prompts import Prompt
from arcvideo.layout import MediaLayout
from arcvideo.lineage.manifest import EXPORT_NAME, read_manifest
from arcvideo.lineage.parents import checkpoint_folder, resolve_parent
from arcvideo.measuring.arms import Seen, arm_clip
from arcvideo.measuring.questions import MeasuredQuestion
from arcvideo.measuring.read import Read
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.media.clip import to_media
from arcvideo.model.disk.loading import check_written, dtype_to_ask, load_frozen
from arcvideo.model.special import special_ids
from arcvideo.model.towers.features import FeatureStore, store_of
from arcvideo.processing import ArcVideoProcessor
from arcvideo.render import render_branch, render_prefix, split_question
from arcvideo.sampling.encode import encoded
from arcvideo.sampling.sampler import InProcessSampler
from arcvideo.sampling.settings import Sampling
from arcvideo.types import Media

Part = tuple[list[Answer], dict[str, float]]
"""Answers that were given together, and the seconds they took, by what they were spent on."""


def evaluated_with(folder: Path) -> Mapping[str, Any]:
    """Return the settings of the evaluation of the stage that made an export; empty when none is known."""
    try:
        return dict(read_manifest(folder.parent).config["evaluation"]) if folder.name == EXPORT_NAME else {}
    except (FileNotFoundError, ValueError, KeyError):
        return {}


class Ours:
    """An export, a released directory, or a stage's folder."""

    def __init__(self, settings: EvaluateSettings, *, device: torch.device) -> None:
        """Find the checkpoint; its weights are loaded by `load`.

        Raises:
            ValueError: no weights there, or damaged ones.
        """
        self.folder = checkpoint_folder(Path(settings.checkpoint))
        evaluated = evaluated_with(self.folder)
        self.style = settings.style or str(evaluated.get("style", "think"))
        tokens = 1024 if self.style == "think" else 64
        self.sampling = Sampling(
            max_new_tokens=settings.max_new_tokens or tokens, temperature=0.0, batch_prompts=settings.batch_prompts
        )
        self.processor = trained_processor(self.folder, wording=settings.wording, font=settings.font)
        self.device = device
        self.dtype = dtype_to_ask(device)
        self.features_folder = settings.features
        self.weights = resolve_parent(run_dir=self.folder, stage="", parent="", override=self.folder).weights
        self.sampler: Any = None
        self.store: FeatureStore | None = None

    @property
    def layout(self) -> MediaLayout:
        return self.processor.layout

    @property
    def origin(self) -> dict[str, Any]:
        """What decides the answers, besides what is asked."""
        return {
            "model": "arcvideo",
            "weights": self.weights,
            "style": self.style,
            "wording": self.processor.wording,
            "font": _font(self.processor.font),
            "layout": vars(self.layout),
            "decoding": {"greedy": True, "max_new_tokens": self.sampling.max_new_tokens},
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def load(self) -> None:
        """Load the weights."""
        model = load_frozen(self.folder, device=self.device)
        if self.features_folder:
            self.store = store_of(model, root=Path(self.features_folder))
        self.sampler = InProcessSampler(model, tokenizer=self.processor.tokenizer)

    def prompts_digest(self, read: Read) -> str:
        """Return 16 hex digits of what the model reads of the questions about a clip, media left out."""
        text = hashlib.sha256()
        frames = None if read.seen is None else len(read.seen.clip.frame_times)
        for question in read.material.questions:
            prompt = self._prompt(question, media=None, frames=frames, seconds=None)
            text.update(prompt.ids.tobytes())
        return text.hexdigest()[:16]

    def first_prompt(self, question: MeasuredQuestion) -> str:
        """Return what a question looks like to the model, a clip of one frame in front of it."""
        frames = None if question.sample.media_key is None else 1
        ids = self._prompt(question, media=None, frames=frames, seconds=None).question_ids
        return str(self.processor.tokenizer.decode(ids.tolist()))

    def ask(self, clips: Iterable[Read]) -> Iterator[Part]:
        """Yield the answers to everything that is left to ask, some clips at a time."""
        batch: list[Asked] = []
        read: dict[tuple[str, int], Read] = {}
        frames, spent = 0, 0.0
        for clip in clips:
            began = time.perf_counter()
            group = self._asked(clip)
            spent += time.perf_counter() - began
            mine = sum(
                {(medium.key, medium.has_video, medium.has_audio): medium.frame_count for *_, prompt in group
                 for medium in prompt.media}.values()
            )  # fmt: skip
            if batch and (len(batch) + len(group) > self.sampling.batch_prompts or frames + mine > FRAMES_TOGETHER):
                yield self._answers(batch, read=read, encoding=spent)
                batch, read, frames, spent = [], {}, 0, 0.0
            batch += group
            read |= {(arm, number): clip for arm, number, _ in group}
            frames += mine
        if batch:
            yield self._answers(batch, read=read, encoding=spent)

    def _answers(self, batch: Sequence[Asked], *, read: Mapping[tuple[str, int], Read], encoding: float) -> Part:
        before = dict(self.sampler.seconds)
        answers = []
        for answer in answered(batch, sampler=self.sampler, settings=self.sampling):
            clip = read[answer.arm, answer.number]
            shown = None if clip.seen is None else clip.seen.clip
            has: dict[str, Any] = {
                "has_audio": shown is not None and shown.waveform is not None,
                "has_video": shown is not None and shown.frames is not None,
            }
            answers.append(replace(answer, **has))
        seconds = {"encode": encoding, "video": 0.0}
        seconds |= {name: self.sampler.seconds[name] - before[name] for name in before}
        clips = {clip.material.number: clip for clip in read.values() if clip.seen is not None}
        seconds["video"] = sum(clip.seen.clip.duration for clip in clips.values() if clip.seen is not None)
        return answers, seconds

    def _asked(self, read: Read) -> list[Asked]:
        """Return what is left to ask about a clip, with tower outputs in place of pixels."""
        if read.seen is None:
            return [(FULL, question.number, self._prompt(question, media=None, frames=None, seconds=None))
                    for question in read.material.questions]  # fmt: skip
        arms = dict.fromkeys(arm for question in read.material.questions for arm in read.wanted.get(question.key, ()))
        media = self._media(read.seen, arms=list(arms), other=read.other)
        prompts: list[Asked] = []
        for arm in arms:
            if arm not in media:
                continue
            for question in read.material.questions:
                if arm in read.wanted.get(question.key, ()):
                    prompt = self._prompt(
                        question, media=media[arm], frames=media[arm].frame_count, seconds=read.seen.clip.duration
                    )
                    prompts.append((arm, question.number, prompt))
        return prompts

    def _media(self, seen: Seen, *, arms: Sequence[str], other: Any) -> dict[str, Media]:
        """Return arm -> the encoded clip; each picture and each sound goes through its tower once."""
        model = self.sampler.model
        shown = {arm: clip for arm in arms if (clip := arm_clip(seen, arm=arm, other=other)) is not None}
        full = to_media(seen.clip, layout=self.layout)
        (first,) = encoded([full], model=model, features=self.store)
        media = {FULL: first}
        later = {}
        for arm, clip in shown.items():
            if arm == FULL:
                continue
            # What an arm leaves alone was encoded with the whole clip, and a picture without its sound keeps its times.
            same_picture, same_sound = clip.frames is seen.clip.frames, clip.waveform is seen.clip.waveform
            made = (
                replace(full, key=clip.key, mel=None)
                if clip.waveform is None or same_sound
                else to_media(clip, layout=self.layout)
            )
            later[arm] = replace(
                made,
                pixels=None if same_picture else clip.frames,
                patches=first.patches if same_picture else None,
                speech=first.speech if same_sound else None,
                has_video=clip.frames is not None,
                has_audio=clip.waveform is not None,
                seconds=full.seconds if clip.waveform is None else made.seconds,
            )
        changed = encoded(list(later.values()), model=model)
        return {arm: medium for arm, medium in (media | dict(zip(later, changed, strict=True))).items() if arm in shown}

    def _prompt(
        self, question: MeasuredQuestion, *, media: Media | None, frames: int | None, seconds: float | None
    ) -> Prompt:
        tokenizer, sample = self.processor.tokenizer, question.sample
        branch = render_branch(sample, tokenizer=tokenizer, wording=self.processor.wording)
        prefix = np.zeros(0, dtype=np.int64)
        if frames is not None:
            before = split_question(sample).before
            prefix = render_prefix(frame_count=frames, before=before, tokenizer=tokenizer, layout=self.layout)
        return Prompt(
            prefix_ids=prefix,
            question_ids=branch.ids[: branch.question_tokens],
            media=() if media is None else (media,),
            sample=sample,
            source="evaluation",
            tags=question.tags,
            duration=seconds,
            specials=special_ids(tokenizer),
        )


def trained_processor(folder: Path, *, wording: str = "", font: str = "") -> ArcVideoProcessor:
    """Return the processor of a checkpoint; without a wording it has that of the stage which trained it.

    Raises:
        ValueError: a file of the checkpoint is missing or damaged.
    """
    check_written(folder)  # before anything of it is believed
    return ArcVideoProcessor.from_pretrained(
        folder, wording=wording or _trained_wording(folder) or None, font=font or None
    )


def _trained_wording(folder: Path) -> str:
    """Return the wording that the stage of an export was trained with; empty when nothing says so."""
    try:
        return str(read_manifest(folder.parent).config["data"]["wording"]) if folder.name == EXPORT_NAME else ""
    except (FileNotFoundError, ValueError, KeyError):
        return ""


def _font(path: str | None) -> str:
    return "bundled" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
