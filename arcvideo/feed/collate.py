"""Packs rendered families into one Batch: ids, positions, segments, targets.

One row holds families one after the other; a family is a prefix segment (the clip) and its branch segments, whose
parent it is. Media tokens are never cut: what does not fit a budget was settled by the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from arcvideo.feed.prompts import Prompt
from arcvideo.model.positions import next_position, replace_newlines, xd_positions
from arcvideo.model.special import SpecialIds
from arcvideo.render import Branch, Ids
from arcvideo.types import Batch, Media, Sample, Segments


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A family ready to be packed."""

    prefix: Ids
    """(n,) int64 with newline ids; empty without media, and where media stand behind an answer: then the branches stand
    alone."""
    media: tuple[Media, ...]
    """In the order in which they are shown; without a prefix those of its only branch."""
    samples: tuple[Sample, ...]
    branches: tuple[Branch, ...]


@dataclass
class _Row:
    """A packed row while it grows."""

    specials: SpecialIds
    ids: list[Ids] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    nexts: list[int] = field(default_factory=list)
    """Position of what follows each segment."""
    parents: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    media: list[Media] = field(default_factory=list)
    targets: list[tuple[np.ndarray, Ids, np.ndarray]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.starts[-1]

    def add_segment(self, ids: Ids, *, parent: int = -1) -> int:
        """Append a segment; its positions start where the parent's end, on all four axes. Returns its number."""
        offset, tokens = self.nexts[parent] if parent >= 0 else 0, torch.from_numpy(ids)
        self.ids.append(ids)
        self.positions.append(xd_positions(tokens, self.specials, offset=offset))
        self.nexts.append(next_position(tokens, self.specials, offset=offset))
        self.parents.append(parent)
        self.starts.append(self.length + len(ids))
        return len(self.parents) - 1

    def add_targets(self, *, positions: np.ndarray, ids: Ids, weights: np.ndarray, key: str, task: str) -> None:
        """Append a sample's targets: position -> the id it predicts."""
        self.targets.append((positions, ids, weights))
        self.keys.append(key)
        self.tasks.append(task)

    def batch(self, *, extra: Mapping[str, Tensor] | None = None) -> Batch:
        ids = torch.from_numpy(np.concatenate(self.ids))
        counts = [len(target[1]) for target in self.targets]
        return Batch(
            input_ids=replace_newlines(ids, special=self.specials),
            position_ids=torch.cat(self.positions, dim=1),
            segments=Segments(
                starts=torch.tensor(self.starts, dtype=torch.int32),
                parents=torch.tensor(self.parents, dtype=torch.int32),
            ),
            media=tuple(self.media),
            target_positions=torch.from_numpy(np.concatenate([target[0] for target in self.targets]).astype(np.int64)),
            target_ids=torch.from_numpy(np.concatenate([target[1] for target in self.targets])),
            target_weights=torch.from_numpy(np.concatenate([target[2] for target in self.targets]).astype(np.float32)),
            target_samples=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
            keys=tuple(self.keys),
            tasks=tuple(self.tasks),
            extra=dict(extra or {}),
        )


def length_weights(count: int, *, weighting: str) -> np.ndarray:
    """Return (count,) weights of an answer's tokens: token 1, sqrt 1/sqrt(count), sample 1/count each."""
    power = {"token": 0.0, "sqrt": 0.5, "sample": 1.0}[weighting]
    return np.full(count, float(count) ** -power if count else 0.0)


def collate(families: Sequence[Rendered], *, specials: SpecialIds, weighting: str) -> Batch:
    """Return one packed row of families; without families, a row whose only target weighs nothing.

    The empty row keeps ranks in step when everything planned for one of them was quarantined.
    """
    row = _Row(specials=specials)
    for family in families:
        assert len(family.prefix) or not family.media or len(family.branches) == 1
        parent = _add_shared(row, ids=family.prefix, media=family.media)
        for sample, branch in zip(family.samples, family.branches, strict=True):
            start = row.length
            row.add_segment(branch.ids, parent=parent)
            target = np.flatnonzero(branch.is_target)
            row.add_targets(
                positions=start + target - 1,
                ids=branch.ids[target],
                weights=length_weights(len(target), weighting=weighting),
                key=sample.key,
                task=sample.task,
            )
    if not row.keys:
        row.add_segment(np.array([specials.start, specials.end], dtype=np.int64))
        nothing = np.zeros(1, dtype=np.int64)
        row.add_targets(positions=nothing, ids=nothing + specials.end, weights=nothing, key="", task="")
    return row.batch()


def collate_groups(
    prompts: Sequence[Prompt],
    *,
    completions: Sequence[Sequence[Sequence[int]]],
    weights: Sequence[Sequence[float]],
    specials: SpecialIds,
    extra: Mapping[str, Tensor] | None = None,
) -> Batch:
    """Return one packed row of groups: each prompt once, as the parent segment of its completions.

    A completion's first token is predicted by the last position of its prompt. Samples, and so `extra` tensors given
    per sample or per target, count the completions in order: all of the first prompt, all of the second, ...

    Args:
        prompts: P prompts.
        completions: P groups of id lists, end token included where it was generated; none may be empty.
        weights: P groups of one weight per completion, put on each of its tokens.
        specials: the tokenizer's special ids.
        extra: goes into the batch as it is.
    """
    row = _Row(specials=specials)
    for prompt, group, group_weights in zip(prompts, completions, weights, strict=True):
        start = row.length
        parent = _add_shared(row, ids=prompt.ids, media=prompt.media)
        last = start + prompt.length - 1
        for number, (completion, weight) in enumerate(zip(group, group_weights, strict=True)):
            ids = np.asarray(completion, dtype=np.int64)
            if not len(ids):
                raise ValueError(f"{prompt.sample.key}: completion {number} is empty")
            first = row.length
            row.add_segment(ids, parent=parent)
            row.add_targets(
                positions=np.concatenate([[last], np.arange(first, first + len(ids) - 1)]),
                ids=ids,
                weights=np.full(len(ids), weight),
                key=f"{prompt.sample.key}#{number}",
                task=prompt.sample.task,
            )
    return row.batch(extra=extra)


def _add_shared(row: _Row, *, ids: Ids, media: tuple[Media, ...]) -> int:
    """Return the shared segment's number, -1 when there is nothing to share; media without one are the next
    segment's.
    """
    row.media.extend(media)
    return row.add_segment(ids) if len(ids) else -1
