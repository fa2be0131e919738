"""A checkpoint of arcvideo as a model of lmms-eval: same frames, times, prompts and decoding as `arcvideo evaluate`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmms_eval.api.model import lmms
from tqdm import tqdm

from arcvideo.evaluation.answers import FULL
from arcvideo.evaluation.evaluate import Asked, ask
from arcvideo.lineage.parents import checkpoint_folder
from arcvideo.measuring.answering.ours import evaluated_with, trained_processor
from arcvideo.media.clip import read_clip
from arcvideo.media.sound import SAMPLE_RATE
from arcvideo.messages import file_bytes
from arcvideo.model.disk.loading import load_frozen
from arcvideo.sampling.sampler import InProcessSampler
from arcvideo.sampling.settings import Sampling
from arcvideo.tasks import DEFAULT_TASK
from arcvideo.tasks.answers import one_answer
from arcvideo.types import Media

TASK_COLUMN = "arcvideo_task"
"""Column of a document that says which kind of question it is. Tasks that have it read whole answers with arcvideo's
parser; those of others get what stands in the answer block."""

_THINKING = 1024
"""Tokens that an answer with thoughts may have at least, whatever a task made for short answers says."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question of lmms-eval."""

    number: int
    """Its place among the requests."""
    context: str
    visuals: tuple[Any, ...]
    kind: str | None
    """Value of TASK_COLUMN; None where a task does not say it."""
    tokens: int
    """Tokens after which its answer is cut off."""
    temperature: float
    until: tuple[str, ...]
    """Strings that end an answer; they are cut off."""

    @property
    def about(self) -> str:
        """Name of what it is about; requests about one clip are asked together."""
        return "\n".join(one if isinstance(one, str) else f"{type(one).__name__} {id(one)}" for one in self.visuals)


class ArcVideo(lmms):
    """`--model arcvideo --model_args pretrained=DIR`."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        style: str = "",
        wording: str = "",
        font: str = "",
        max_new_tokens: int = 0,
        batch_size: int | str = 64,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load the checkpoint.

        Args:
            pretrained: an export, a released directory, or the folder of a stage.
            style: plain, or think: with the instruction suffix. By default what the stage was evaluated with; think
                for a checkpoint that no stage made.
            wording: of the suffix, arc or brief; by default what the checkpoint was trained with.
            font: TrueType file of the time stamps.
            max_new_tokens: in place of what tasks say.
            batch_size: questions answered together; a word such as auto takes 64.
            max_batch_size: lmms-eval passes it; nothing is searched here.
            device: cpu or cuda; by default cuda where there is one. bfloat16 there, float32 on the CPU.
        """
        super().__init__()
        folder = checkpoint_folder(Path(pretrained).expanduser())
        if not folder.is_dir():
            raise ValueError(f"pretrained={pretrained}: no such directory")
        self.style = style or str(evaluated_with(folder).get("style", "think"))
        if self.style not in ("plain", "think"):
            raise ValueError(f"style={self.style!r}: choose plain or think")
        self.processor = trained_processor(folder, wording=wording, font=font)
        self.max_new_tokens = int(max_new_tokens)
        self.batch_prompts = int(batch_size) if str(batch_size).isdecimal() and int(batch_size) else 64
        self._device = torch.device(device or _own_device())
        model = load_frozen(folder, device=self._device)
        self.sampler = InProcessSampler(model, tokenizer=self.processor.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where it is asked."""
        return self._device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answers, in order; every clip is decoded and encoded once for all its questions."""
        found = [self._request(number, one.args) for number, one in enumerate(requests)]
        answers = [""] * len(found)
        shown = tqdm(total=len(found), disable=self.rank != 0, desc="Model Responding")
        for tokens, temperature in dict.fromkeys((one.tokens, one.temperature) for one in found):
            some = [one for one in found if (one.tokens, one.temperature) == (tokens, temperature)]
            how = Sampling(max_new_tokens=tokens, temperature=temperature, batch_prompts=self.batch_prompts)
            for part in ask(self._asked(some), sampler=self.sampler, settings=how):
                for answer in part:
                    answers[answer.number] = said(answer.text, request=found[answer.number])
                shown.update(len(part))
        shown.close()
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: answers are generated.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("arcvideo answers in words: choose a task with output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: one question at a time is asked about a clip.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("arcvideo is asked one question at a time: choose a task of one round")

    def _request(self, number: int, arguments: Sequence[Any]) -> Request:
        context, generation, doc_to_visual, doc_id, task, split = arguments
        doc = self.task_dict[task][split][doc_id]
        visuals = doc_to_visual(doc) or ()
        tokens = self.max_new_tokens or int(generation.get("max_new_tokens") or 64)
        if self.style == "think" and not self.max_new_tokens:
            tokens = max(tokens, _THINKING)
        draws = bool(generation.get("do_sample", generation.get("temperature")))
        until = generation.get("until") or ()
        return Request(
            number=number,
            context=context,
            visuals=tuple(visuals) if isinstance(visuals, (list, tuple)) else (visuals,),
            kind=doc.get(TASK_COLUMN),
            tokens=tokens,
            temperature=float(generation.get("temperature") or 0.0) if draws else 0.0,
            until=(until,) if isinstance(until, str) else tuple(until),
        )

    def _asked(self, requests: Iterable[Request]) -> Iterator[list[Asked]]:
        """Yield what is asked about each clip, read when it is its turn."""
        clips: dict[str, list[Request]] = {}
        for one in requests:
            clips.setdefault(one.about, []).append(one)
        for group in clips.values():
            media = [self._media(one) for one in group[0].visuals]
            yield [self._one(request, media=media) for request in group]

    def _one(self, request: Request, *, media: Sequence[Media]) -> Asked:
        task = "none" if self.style == "plain" else request.kind or DEFAULT_TASK
        prompt = self.processor.prompt(request.context, media=media, task=task)
        # The key of a question seeds its noise: the same draws whatever else is asked.
        return FULL, request.number, replace(prompt, sample=replace(prompt.sample, key=f"{request.number}"))

    def _media(self, visual: Any) -> Media:
        """Return what the towers read of a video or sound file, a picture, or decoded sound."""
        if isinstance(visual, str):
            return self.processor.media(self.processor.read(visual))
        data = file_bytes(_samples(visual))
        name = f"a {type(visual).__name__} of the task"
        clip = read_clip(data, name=name, layout=self.processor.layout, font=self.processor.font)
        return self.processor.media(clip)


def said(text: str, *, request: Request) -> str:
    """Return an answer as its task reads it."""
    if request.kind is None:
        answer = one_answer(text).value
        text = text if answer is None else answer
    for end in request.until:
        text = text.split(end)[0]
    return text


def _samples(visual: Any) -> Any:
    """Return the samples of decoded sound, anything else as it is.

    Raises:
        ValueError: sound at another rate than the model hears.
    """
    if not isinstance(visual, Mapping) or "array" not in visual:
        return visual
    if visual.get("sampling_rate") != SAMPLE_RATE:
        raise ValueError(f"sound at {visual.get('sampling_rate')} Hz: give the file, or samples at {SAMPLE_RATE} Hz")
    return np.asarray(visual["array"], dtype=np.float32)


def _own_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
