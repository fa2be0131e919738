"""Rejection sampling, the work behind `arcvideo.rejection.sample`: draw, score, keep, write."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arcvideo.decoding.pool import MediaPool
from arcvideo.feed.prompts import Prompt
from arcvideo.files import write_whole
from arcvideo.lineage.parents import checkpoint_folder, resolve_parent
from arcvideo.model.disk.loading import check_written, load_frozen
from arcvideo.model.towers.features import store_of
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.planning.families import Family
from arcvideo.processing import ArcVideoProcessor
from arcvideo.progress import counted
from arcvideo.rejection.journal import Journal, journal_path, read_answers
from arcvideo.rejection.questions import Questions, loaded, open_questions, renamed
from arcvideo.rejection.selection import Drawn, items_of, summary
from arcvideo.rollout.rewards.loading import load_reward
from arcvideo.rollout.rewards.score import score
from arcvideo.sampling.encode import with_features
from arcvideo.sampling.sampler import InProcessSampler
from arcvideo.sampling.settings import SampleSettings
from arcvideo.shards.members import read_groups
from arcvideo.shards.write import Record, copied, write_shards
from arcvideo.tasks import RecordError

DRAWING = (
    "tasks", "tags", "max_clips", "items_per_clip", "num_generations", "style", "temperature", "top_p", "top_k",
    "max_new_tokens", "stop", "seed", "clips_per_shard",
)  # fmt: skip
"""Settings that the drawn answers depend on, besides checkpoint, data, wording and rewards."""
CHOOSING = ("keep", "prefer", "above", "require_format", "pairs")
"""Settings that only choose among drawn answers."""


def sample(settings: SampleSettings) -> dict[str, Any] | None:
    """Draw, keep and write; returns the summary when all shards are done, None while other ranks still draw.

    Raises:
        ValueError: settings, weights, data or a reward that cannot be used, or answers that were drawn otherwise.
    """
    _check_rewards(settings)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    folder, out = checkpoint_folder(Path(settings.checkpoint)), Path(settings.out)
    weights = resolve_parent(run_dir=folder, stage="", parent="", override=folder).identity
    check_written(folder)
    processor = ArcVideoProcessor.from_pretrained(folder, wording=settings.wording or None)
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
    model = load_frozen(folder, device=own)
    features = _features(model, folder=settings.features)
    sampler = InProcessSampler(model, tokenizer=processor.tokenizer, features=features)
    with MediaPool(count=settings.workers) if settings.workers else nullcontext() as pool:
        questions = open_questions(settings, processor=processor, pool=pool, features=features, progress=rank == 0)
        units = questions.units(clips=settings.clips_per_shard)
        origin = {
            "checkpoint": weights[:16],
            "data": questions.digest[:16],
            "wording": processor.wording,
            "rewards": {task: settings.reward_of(task) for task in settings.tasks},
            **{name: asdict(settings)[name] for name in DRAWING},
        }
        for unit in range(rank, units, world):
            families = questions.unit(unit, clips=settings.clips_per_shard)
            with Journal(journal_path(out, name=settings.name, unit=unit), origin=origin) as journal:
                _draw(journal, families, questions=questions, sampler=sampler, settings=settings, quiet=rank != 0)
                _write(journal, families, questions=questions, settings=settings, unit=unit)
    return _summarise(settings, units=units, origin=origin)


def _check_rewards(settings: SampleSettings) -> None:
    for task in settings.tasks:
        name = settings.reward_of(task)
        if name is not None:
            renamed(partial(load_reward, name), old="grpo.rewards", new=f"rewards.{task}")


def _features(model: Any, *, folder: str) -> Any:
    return store_of(model, root=Path(folder)) if folder else None


def _draw(
    journal: Journal,
    families: Sequence[Family],
    *,
    questions: Questions,
    sampler: Any,
    settings: SampleSettings,
    quiet: bool,
) -> None:
    """Draw what the journal lacks."""
    left = [
        replace(family, items=items)
        for family in families
        if (items := tuple(item for item in family.items if not journal.answers.has(questions.key(family, item))))
    ]
    with counted(what=journal.path.name.partition(".")[0], total=len(left), unit="clip", quiet=quiet) as advance:
        for batch in loaded(left, questions=questions, size=settings.batch_prompts):
            prompts = []
            for family, result in batch:
                if isinstance(result, Exception):
                    journal.lose([questions.key(family, item) for item in family.items], reason=str(result))
                else:
                    prompts += result
            if prompts:
                prompts = with_features(prompts, model=sampler.model, features=sampler.features)
                journal.add(_answers(prompts, sampler=sampler, settings=settings))
            advance(len(batch))


def _answers(prompts: Sequence[Prompt], *, sampler: Any, settings: SampleSettings) -> list[Drawn]:
    """Draw and score."""
    groups = sampler.sample(
        prompts,
        num_generations=settings.num_generations,
        settings=settings.sampling,
        seeds=[settings.seed] * len(prompts),
    )
    tables = {task: {name: 1.0} for task in settings.tasks if (name := settings.reward_of(task)) is not None}
    # A task without a reward is scored by one that weighs nothing.
    scoring = GrpoSettings(rewards={"format": 0.0}, task_rewards=tables)
    scores = renamed(partial(score, groups, settings=scoring), old="grpo.rewards", new="rewards")
    rows, count = [], settings.num_generations
    for number, group in enumerate(groups):
        part = scores.parts.get(settings.reward_of(group.prompt.task) or "")
        values = [None] * count if part is None else part[number * count : (number + 1) * count].tolist()
        rows.append(
            Drawn(
                key=group.prompt.key,
                task=group.prompt.task,
                answer=group.prompt.sample.turns[0].answer,
                texts=[completion.text for completion in group.completions],
                finished=[completion.finished for completion in group.completions],
                scores=[None if value is None or value != value else round(value, 6) for value in values],
            )
        )
    return rows


def _write(
    journal: Journal, families: Sequence[Family], *, questions: Questions, settings: SampleSettings, unit: int
) -> None:
    """Write the shard, unless it stands there chosen in the same way."""
    how = {name: asdict(settings)[name] for name in CHOOSING}
    path = journal.path.with_name(f"{settings.name}-{unit:06d}.tar")
    if journal.answers.written == how:
        return
    path.unlink(missing_ok=True)
    records = _records(journal, families, questions=questions, settings=settings)
    first = next(records, None)
    if first is not None:
        every = (record for part in ([first], records) for record in part)
        write_shards(
            every,
            out=path.parent,
            name=settings.name,
            first=unit,
            per_shard=settings.clips_per_shard,
            bytes_per_shard=1 << 62,
        )
    journal.write(how)


def _records(
    journal: Journal, families: Sequence[Family], *, questions: Questions, settings: SampleSettings
) -> Iterator[Record]:
    """Yield the records in which something was kept: their own media, the items that were made."""
    shard, groups = None, {}
    for clip in dict.fromkeys(family.clip for family in families):
        index, row = questions.place(clip)
        keys = [questions.key(family, item) for family in families if family.clip == clip for item in family.items]
        drawn = [journal.answers.rows[key] for key in keys if key in journal.answers.rows]
        if not drawn:
            continue
        if shard != index.shard:
            shard, groups = index.shard, {group.key: group for group in read_groups(index.shard)[0]}
        try:
            record = copied(index, row, groups=groups)
        except RecordError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        items = record.content["items"]
        made = [item for entry in drawn for item in items_of(entry, item=items[entry.number], settings=settings)]
        if made:
            yield replace(record, content={**record.content, "items": made})


def _summarise(settings: SampleSettings, *, units: int, origin: dict[str, Any]) -> dict[str, Any] | None:
    """Write NAME.summary.json once every shard is done."""
    out = Path(settings.out)
    how = {name: asdict(settings)[name] for name in CHOOSING}
    rows: list[Drawn] = []
    lost = 0
    for unit in range(units):
        answers = read_answers(journal_path(out, name=settings.name, unit=unit))
        if answers.origin != origin or answers.written != how:
            return None
        rows += answers.rows.values()
        lost += len(answers.lost)
    totals = {"origin": origin, "chosen": how, "lost": lost, "tasks": summary(rows, settings=settings)}
    write_whole(out / f"{settings.name}.summary.json", json.dumps(totals, indent=1) + "\n")
    return totals
