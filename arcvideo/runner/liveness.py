"""The proof before step 1: each modality moves the predictions, and gradients reach what trains and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from arcvideo.objectives.logprobs import AT_ONCE
from arcvideo.objectives.scores import Ask, asks
from arcvideo.processes.ranks import World, gather_json
from arcvideo.runner.trainable import base_of, module_of
from arcvideo.types import Batch, Media, model_inputs

MODALITIES = ("video", "audio")
_CONTENT = {"video": ("pixels", "patches"), "audio": ("mel", "speech")}
_FED_BY = {"vit": "video", "vision_projector": "video", "whisper": "audio", "audio_projector": "audio"}

Forward = Callable[[Batch], Tensor]


class DeadModality(ValueError):
    """A modality or module does not take part in training; the message names it."""


@dataclass
class LivenessReport:
    """What was proven, for the manifest."""

    moved: dict[str, float] = field(default_factory=dict)
    """`video/permuted` and so on -> largest change of a target's log-probability or mean logit; of any logit where the
    objective takes logits."""
    gradients: dict[str, float] = field(default_factory=dict)
    """Trained module -> root of the summed squared gradients of the micro-batches watched."""
    notes: list[str] = field(default_factory=list)
    """What could not be proven, and why."""


def has(media: Media, modality: str) -> bool:
    """Return whether the clip really has this modality."""
    return media.has_video if modality == "video" else media.has_audio


def _fit(donor: Tensor, like: Tensor) -> Tensor:
    """Return the donor's content stretched to the length of `like` along the first axis (frames or chunks)."""
    if donor.shape[1:] != like.shape[1:]:
        return like.roll(1, 0)
    index = torch.arange(like.shape[0]) * donor.shape[0] // like.shape[0]
    return donor[index]


def permuted(batch: Batch, *, modality: str, donors: Sequence[Media]) -> Batch | None:
    """Return the batch with the modality of each clip taken from another clip; None when there is no other clip."""
    pool = [media for media in donors if has(media, modality)]
    media, changed = [], False
    for item in batch.media:
        others = [donor for donor in pool if donor.key != item.key]
        if has(item, modality) and others:
            swap: dict[str, Any] = {}
            for name in _CONTENT[modality]:
                mine, theirs = getattr(item, name), getattr(others[0], name)
                if mine is not None and theirs is not None:
                    swap[name] = _fit(theirs, mine)
            changed = changed or bool(swap)
            item = replace(item, **swap)
        media.append(item)
    return replace(batch, media=tuple(media)) if changed else None


def zeroed(batch: Batch, *, modality: str) -> Batch:
    """Return the batch with the modality of each clip set to zeros."""

    def silence(item: Media) -> Media:
        tensors = {name: getattr(item, name) for name in _CONTENT[modality]}
        zeros: dict[str, Any] = {
            name: torch.zeros_like(tensor) for name, tensor in tensors.items() if tensor is not None
        }
        return replace(item, **zeros)

    return replace(batch, media=tuple(silence(item) if has(item, modality) else item for item in batch.media))


def predictions(batch: Batch, *, run: Callable[..., Tensor], objective: Any) -> Tensor:
    """Return what the proof compares: (2, T) log-probabilities and mean logits of the targets, or (T, V) logits where
    the objective takes them.

    Args:
        batch: one packed row.
        run: as in `loss_of`.
        objective: what is trained by.
    """
    if not asks(objective):
        return run(**model_inputs(batch))
    # The mean logit moves also where every target is as good as certain.
    return run(**model_inputs(batch), ask=Ask(ids=batch.target_ids, figures=("mean_logit",)))


def check_modalities(steps: Iterable[Sequence[Batch]], *, forward: Forward, world: World) -> LivenessReport:
    """Prove that video and audio move the predictions.

    Looks through `steps` (this rank's micro-batches of the first steps) until some rank has each modality. Every
    rank runs the same number of forwards, whatever its data. Two equal forwards measure the noise of the machine;
    a change counts when it is larger.

    Raises:
        DeadModality: a modality is in the data, but changing it changes nothing.
    """
    report = LivenessReport()
    missing = list(MODALITIES)
    for batches in steps:
        here = {name: any(has(media, name) for batch in batches for media in batch.media) for name in missing}
        present = {name for part in gather_json(here, world=world) for name, seen in part.items() if seen}
        for modality in [name for name in missing if name in present]:
            _check(modality, batches, forward=forward, world=world, report=report)
            missing.remove(modality)
        if not missing:
            break
    report.notes += [f"no {name} in the data looked through: not proven alive" for name in missing]
    return report


def _check(modality: str, batches: Sequence[Batch], *, forward: Forward, world: World, report: LivenessReport) -> None:
    donors = [media for batch in batches for media in batch.media]
    candidates = [batch for batch in batches if any(has(media, modality) for media in batch.media)]
    batch = candidates[0] if candidates else batches[0]
    swapped = permuted(batch, modality=modality, donors=donors)
    with torch.no_grad():
        # One after the other: where they are all logits of a row, two of them lie there at a time.
        reference = forward(batch)
        noise = _change(reference, forward(batch))
        mine = {"permuted": _change(reference, forward(swapped or batch))}
        mine["zeroed"] = _change(reference, forward(zeroed(batch, modality=modality)))
    facts = {"noise": noise, "here": bool(candidates), "swapped": swapped is not None, **mine}
    parts = [part for part in gather_json(facts, world=world) if part["here"]]
    floor = max(part["noise"] for part in parts)
    for name in mine:
        tried = [part for part in parts if name == "zeroed" or part["swapped"]]
        if not tried:
            report.notes.append(f"{modality}: only one clip in the step, so it could not be permuted")
            continue
        moved = max(part[name] for part in tried)
        report.moved[f"{modality}/{name}"] = moved
        if not moved > 2 * floor:
            raise DeadModality(
                f"{modality} is dead: {name} {modality} left every prediction as it was (moved {moved:.3g}, "
                f"noise {floor:.3g}) for sample {batch.keys[0] if batch.keys else '?'}. The model does not read "
                "what the batch carries: check that the forward gets `media` and that its embeddings reach the "
                "language model. "
                "To train without this proof: runner.liveness=false"
            )


def _change(first: Tensor, second: Tensor) -> float:
    """Return the largest difference of two (..., n) tensors, in fp32 some rows at a time."""
    if not first.numel():
        return 0.0
    rows = max(AT_ONCE // first[0].numel(), 1)
    parts = zip(first.split(rows), second.split(rows), strict=True)
    return float(torch.stack([(one.float() - two.float()).abs().max() for one, two in parts]).max())


class GradientWatch:
    """Sees, by hooks, the gradients that arrive during the first steps. Close it when it is done."""

    def __init__(self, trained: Mapping[str, nn.Parameter], *, train: Sequence[str], world: World) -> None:
        """Watch.

        Args:
            trained: every parameter that requires a gradient, by name.
            train: modules that the configuration trains.
            world: the ranks.

        Raises:
            DeadModality: a parameter outside the configured modules requires a gradient.
        """
        extra = sorted(name for name in trained if module_of(name) not in train)
        if extra:
            raise DeadModality(
                f"{extra[0]} and {len(extra) - 1} more require gradients, but stage.train={list(train)} freezes them"
            )
        self._world = world
        self._train = list(train)
        self._squares: dict[str, Tensor | float] = {}
        self._norms: dict[str, float] = {}
        self._hooks = [parameter.register_hook(self._note(module_of(name))) for name, parameter in trained.items()]

    def _note(self, module: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            # The engine multiplies losses by the number of ranks, see Engine.backward.
            share = gradient.detach().float() / self._world.size
            self._squares[module] = self._squares.get(module, 0.0) + share.square().sum()

        return hook

    @property
    def unproven(self) -> list[str]:
        """Trained modules that no gradient other than zero has reached yet."""
        return [module for module in self._train if module not in self._norms]

    def after_backward(self, batches: Sequence[Batch]) -> None:
        """Judge the step whose backward has just ended.

        Raises:
            DeadModality: other modules got a gradient and their modality was there, but this one got none.
        """
        mine = {
            "squares": {module: float(value) for module, value in self._squares.items()},
            "present": [
                name for name in MODALITIES if any(has(media, name) for batch in batches for media in batch.media)
            ],
        }
        self._squares = {}
        parts = gather_json(mine, world=self._world)
        present = {name for part in parts for name in part["present"]}
        for part in parts:
            for module, square in part["squares"].items():
                if square > 0:
                    self._norms[module] = self._norms.get(module, 0.0) + square
        dead = [module for module in self.unproven if _FED_BY.get(base_of(module)) in {None, *present}]
        # A step may rightly have no gradient at all: a first GRPO step whose groups are all equal.
        if dead and self._norms:
            raise DeadModality(
                f"module {dead[0]} is to train, but no gradient reaches it (gradients reached {sorted(self._norms)}): "
                "its output does not influence the loss. To train without this proof: runner.liveness=false"
            )

    def close(self, report: LivenessReport) -> None:
        """Remove the hooks and write the findings into the report."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        report.gradients.update({module: square**0.5 for module, square in sorted(self._norms.items())})
        report.notes += [
            f"no gradient has reached module {module} so far: not proven alive" for module in self.unproven
        ]
