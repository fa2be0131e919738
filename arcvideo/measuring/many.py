"""Many questions from a file, answered into another as they come: `arcvideo ask questions=FILE out=FILE`.

Questions about one file that follow each other are asked together: it is decoded and encoded once. What was answered
is not asked again; what failed is, and the later line counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch

from arcvideo.evaluation.answers import FULL, Answer
from arcvideo.evaluation.evaluate import Asked, ask
from arcvideo.files import cut_torn_row, json_line, parsed_lines
from arcvideo.lineage.identity import folder_digest
from arcvideo.lineage.parents import checkpoint_folder
from arcvideo.measuring.answering.ours import trained_processor
from arcvideo.media.errors import MediaError
from arcvideo.model.disk.loading import load_frozen
from arcvideo.processes.locks import appending
from arcvideo.progress import watched
from arcvideo.sampling.encode import encoded
from arcvideo.sampling.sampler import InProcessSampler
from arcvideo.sampling.settings import Sampling
from arcvideo.seals import digest_of
from arcvideo.shards.text import json_of
from arcvideo.shards.text import rows as text_rows
from arcvideo.structured import SettingsError
from arcvideo.tasks import TASKS, RecordError
from arcvideo.tasks.blocks import one_answer, split_answer
from arcvideo.tasks.mcq import MCQ, lists_options, with_options
from arcvideo.types import Media


class Settings(Protocol):
    """What `ask` is told, as far as it is about many questions."""

    @property
    def checkpoint(self) -> str: ...
    @property
    def questions(self) -> str: ...
    @property
    def out(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def modality(self) -> str: ...
    @property
    def wording(self) -> str: ...
    @property
    def font(self) -> str: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def stop_at_answer(self) -> bool: ...
    @property
    def batch_prompts(self) -> int: ...
    @property
    def device(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Line:
    """One question of the file."""

    number: int
    """Its line, from 1."""
    row: Mapping[str, Any]
    digest: str
    """Of the line and how it is asked."""

    @property
    def about(self) -> tuple[str, str, str]:
        """Files and half of them that it is about."""
        return str(self.row.get("video") or ""), str(self.row.get("audio") or ""), str(self.row.get("modality") or "")


def ask_many(settings: Settings) -> str:
    """Answer what is not answered yet; return the line that tells how it went.

    Raises:
        ValueError: a checkpoint, a file of questions or one of answers that cannot be used.
        OSError: a disk that refuses.
    """
    folder = checkpoint_folder(Path(settings.checkpoint))
    out = Path(settings.out)
    how = _how(settings, folder=folder)
    lines = read_questions(Path(settings.questions), how=how)
    failed = 0
    with appending(out) as file:
        done = _answered(out, how=how)
        left = [line for line in lines if line.digest not in done]
        asker = _Asker(settings, folder=folder) if left else None
        answers = asker.answers(left) if asker is not None else ()
        for row in watched(answers, what="answering", total=len(left), unit="question"):
            failed += "error" in row
            file.write(json_line({**row, "how": how}, checked=True))
            file.flush()
    counts = f"{len(left) - failed} answered, {len(lines) - len(left)} were there already, {failed} could not be"
    return f"{settings.out}: {counts}"


def read_questions(path: Path, *, how: str) -> list[Line]:
    """Return the questions of a file of JSON lines; empty lines count for nothing.

    Raises:
        ValueError: a line that is no JSON object; it is named.
    """
    lines = []
    seen: dict[str, int] = {}
    for number, text in text_rows(path):
        if not text.strip():
            continue
        try:
            row = json_of(text)
        except RecordError as error:
            raise SettingsError(f"{path}, line {number}: {error.detail}") from None
        if not isinstance(row, dict):
            raise SettingsError(f"{path}, line {number}: expected an object like {{'question': ...}}")
        digest = digest_of([how, row])
        seen[digest] = seen.get(digest, 0) + 1
        # The same line twice is two questions.
        lines.append(Line(number=number, row=row, digest=f"{digest[:16]}-{seen[digest]}"))
    if not lines:
        raise SettingsError(f"questions={path}: holds no question")
    return lines


def _how(settings: Settings, *, folder: Path) -> str:
    """Return 16 hex digits of everything that decides the answers, besides the questions."""
    names = ("task", "modality", "wording", "font", "max_new_tokens", "temperature", "seed", "stop_at_answer")
    return digest_of([folder_digest(folder), {name: getattr(settings, name) for name in names}])[:16]


def _answered(out: Path, *, how: str) -> set[str]:
    """Return the digests of the questions that were answered; the half line of a killed process is cut off.

    Raises:
        ValueError: the answers of another checkpoint or other settings.
    """
    cut_torn_row(out)
    rows = parsed_lines(out.read_bytes(), name=str(out))
    if any(not isinstance(row, dict) or row.get("how") != how for row in rows):
        raise SettingsError(f"out={out}: holds answers of another checkpoint or of other settings; give another file")
    return {str(row["asked"]) for row in rows if "error" not in row}


class _Asker:
    """A checkpoint that answers lines."""

    def __init__(self, settings: Settings, *, folder: Path) -> None:
        self.settings = settings
        self.root = Path(settings.questions).parent
        self.processor = trained_processor(folder, wording=settings.wording, font=settings.font)
        model = load_frozen(folder, device=settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.sampler = InProcessSampler(model, tokenizer=self.processor.tokenizer)

    def answers(self, lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
        """Yield what becomes of each line; those about one file that follow each other are asked together."""
        how = Sampling(
            max_new_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            batch_prompts=self.settings.batch_prompts,
            stop=["</answer>"] if self.settings.stop_at_answer else [],
        )
        places = {line.number: line for line in lines}
        refused: list[dict[str, Any]] = []
        for part in ask(self._groups(lines, refused=refused), sampler=self.sampler, settings=how):
            yield from (self._row(answer, line=places[answer.number]) for answer in part)
            yield from refused
            refused.clear()
        yield from refused

    def _groups(self, lines: Sequence[Line], *, refused: list[dict[str, Any]]) -> Iterator[list[Asked]]:
        """Yield what is asked about one file at a time; what cannot be asked is put on the list."""
        for about, group in groupby(lines, key=lambda line: line.about):
            some = list(group)
            try:
                media = self._media(*about)
            except (MediaError, OSError, ValueError) as error:
                refused += [_refused(line, error) for line in some]
                continue
            prompts: list[Asked] = []
            for line in some:
                try:
                    prompts.append(self._asked(line, media=media))
                except (ValueError, TypeError) as error:
                    refused.append(_refused(line, error))
            for start in range(0, len(prompts), self.settings.batch_prompts):
                yield prompts[start : start + self.settings.batch_prompts]

    def _media(self, video: str, audio: str, modality: str) -> list[Media]:
        if audio and not video:
            raise ValueError("audio: replaces the sound of video; give a sound file alone as video")
        if not video:
            return []
        clip = self.processor.read(self.root / video, sound=self.root / audio if audio else None)
        shown = self.processor.media(clip, modality=modality or self.settings.modality)
        return encoded([shown], model=self.sampler.model)

    def _asked(self, line: Line, *, media: Sequence[Media]) -> Asked:
        task = str(line.row.get("task") or self.settings.task)
        question = line.row.get("question") or (TASKS[task].question if task in TASKS else "")
        if not isinstance(question, str) or not question.strip():
            raise ValueError("question: is missing")
        options = line.row.get("options") or []
        if not isinstance(options, list | tuple | dict):
            raise ValueError("options: must be a list of texts")
        if options:
            question = with_options(question, options)
        elif task == MCQ.name and not lists_options(question):
            raise ValueError("options: a multiple choice needs some")
        prompt = self.processor.prompt(question, media=media, task=task)
        # The key of a question seeds its draws.
        sample = replace(prompt.sample, key=f"{self.settings.seed}:{line.digest}", truth={"options": options})
        return FULL, line.number, replace(prompt, sample=sample)

    def _row(self, answer: Answer, *, line: Line) -> dict[str, Any]:
        read = TASKS[answer.task].tell(answer.text) if answer.task in TASKS else []
        return {
            **line.row,
            "asked": line.digest,
            "answer": one_answer(answer.text).value or answer.text,
            "think": split_answer(answer.text).think,
            "text": answer.text,
            "read": read,
            "finished": answer.finished,
        }


def _refused(line: Line, error: Exception) -> dict[str, Any]:
    return {**line.row, "asked": line.digest, "error": f"line {line.number}: {error}"}
