"""Completions that outlive the process: a checkpoint between two updates of one rollout carries them, bit for bit."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arcvideo.feed.prompts import Prompt
from arcvideo.sampling.groups import Completion, Group


@dataclass(frozen=True, kw_only=True)
class HeldGroup:
    """The completions of one prompt without the prompt, which the data give again."""

    ids: tuple[Tensor, ...]
    """Each (C,) int64."""
    logprobs: tuple[Tensor, ...]
    """Each (C,) float32, of the sampler."""
    finished: tuple[bool, ...]
    old: tuple[Tensor, ...] = ()
    """Each (C,) float32: log-probabilities of the policy that sampled; empty for a group that is not trained on."""


def hold(group: Group) -> HeldGroup:
    """Return what has to be kept of a group."""
    return HeldGroup(
        ids=tuple(completion.ids for completion in group.completions),
        logprobs=tuple(completion.logprobs for completion in group.completions),
        finished=tuple(completion.finished for completion in group.completions),
    )


def restore_group(held: HeldGroup, *, prompt: Prompt, tokenizer: Any) -> Group:
    """Return the group as it was sampled."""
    completions = tuple(
        Completion(
            ids=ids,
            logprobs=logprobs,
            finished=finished,
            text=tokenizer.decode(ids.tolist(), skip_special_tokens=True),
        )
        for ids, logprobs, finished in zip(held.ids, held.logprobs, held.finished, strict=True)
    )
    return Group(prompt=prompt, completions=completions)


def to_json(held: HeldGroup) -> dict[str, Any]:
    """JSON-able; numbers as base64 of their little-endian bytes."""
    return {
        "lengths": [len(ids) for ids in held.ids],
        "finished": [int(done) for done in held.finished],
        "ids": _bytes(held.ids, "<i4"),
        "logprobs": _bytes(held.logprobs, "<f4"),
        "old": _bytes(held.old, "<f4"),
    }


def from_json(row: Mapping[str, Any]) -> HeldGroup:
    """Return the inverse of `to_json`."""
    lengths = row["lengths"]
    return HeldGroup(
        ids=tuple(part.long() for part in _tensors(row["ids"], "<i4", lengths=lengths)),
        logprobs=_tensors(row["logprobs"], "<f4", lengths=lengths),
        finished=tuple(bool(done) for done in row["finished"]),
        old=_tensors(row["old"], "<f4", lengths=lengths) if row["old"] else (),
    )


def _bytes(tensors: Sequence[Tensor], kind: str) -> str:
    flat = torch.cat(list(tensors)).numpy() if tensors else np.zeros(0)
    return base64.b64encode(flat.astype(kind).tobytes()).decode()


def _tensors(text: str, kind: str, *, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    flat = np.frombuffer(base64.b64decode(text), dtype=kind)
    return torch.from_numpy(flat.astype(flat.dtype.newbyteorder("="))).split(list(lengths))
