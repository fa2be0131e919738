"""What the steps cost on the device: useful FLOPs of a batch, memory in use, and running out of it."""

from __future__ import annotations

import resource
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist

from arcvideo.flops import Segment, decoder_flops, media_flops, peak_flops
from arcvideo.model.settings import ModelSettings
from arcvideo.processes.ranks import World
from arcvideo.types import Batch

_GIB = 1 << 30


class OutOfMemory(ValueError):
    """A micro-batch did not fit; the message names it and the override that fits."""


def useful_flops(batch: Batch, *, settings: ModelSettings, trained: Collection[str]) -> float:
    """Return useful work of forward and backward of a micro-batch (`flops.ForwardFlops.training`).

    Clips that come with tower outputs (a feature-cache hit) cost their projectors only.
    """
    starts, parents = batch.segments.starts.tolist(), batch.segments.parents.tolist()
    lengths = [last - first for first, last in pairwise(starts)]
    segments = [
        Segment(length=length, prefix=lengths[parent] if parent >= 0 else 0)
        for length, parent in zip(lengths, parents, strict=True)
    ]
    cost = decoder_flops(settings.text, segments, targets=int(batch.target_positions.numel()))
    for media in batch.media:
        rows = -(-media.seconds * 50 // settings.audio.max_source_positions)
        chunks = len(media.mel) if media.mel is not None else len(media.speech) if media.speech is not None else rows
        cost += media_flops(
            settings,
            frames=media.frame_count,
            seconds=media.seconds,
            chunks=chunks,
            # An absent picture is one blank frame, looked at once (model/towers/media.py).
            seen=0 if media.patches is not None else media.frame_count if media.has_video else 1,
            heard=0 if media.speech is not None else chunks,
        )
    return cost.training(trained)


def settings_of(model: Any) -> ModelSettings | None:
    """Return sizes of the model for the formulas; None for a model that is not ours."""
    settings = getattr(model, "settings", None)
    return settings if isinstance(settings, ModelSettings) else None


def device_peak(device: torch.device, *, tflops: float) -> float | None:
    """Return peak FLOP/s of this device: the user's figure, else the table's; None when neither knows."""
    if tflops > 0:
        return tflops * 1e12
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_memory(device: torch.device) -> float:
    """GiB: most ever allocated on a GPU; resident size of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * resource.getpagesize() / _GIB
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of a forward or backward means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


class MemoryUse:
    """What the steps take of a device: their peaks, and, learned from steps that fitted, how many tokens fit."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._per_token = 0.0
        self._held = 0
        self._most: dict[str, float] = {}

    def before(self) -> None:
        """A micro-batch begins."""
        if self._cuda:
            self._note()
            self._held = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)

    def after(self, batch: Batch) -> None:
        """The micro-batch has fitted."""
        if self._cuda:
            used = torch.cuda.max_memory_allocated(self._device) - self._held
            self._per_token = max(self._per_token, used / batch.input_ids.numel())

    def since_last(self, *, world: World) -> dict[str, float]:
        """Return the peaks since this was asked last, of the rank that needed most; all ranks ask together.

        Everything counts: rollouts, every micro-batch, the optimizer, and a checkpoint's copies in between.

        Returns:
            `memory/gib` in use and, on a GPU, `memory/reserved_gib` that torch holds for it, fragmentation included.
        """
        self._note()
        most = torch.tensor(list(self._most.values()), dtype=torch.float64)
        if world.size > 1:
            most = most.to(world.device)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
        peaks = dict(zip(self._most, most.tolist(), strict=True))
        self._most = {}
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        return peaks

    def _note(self) -> None:
        now = {"memory/gib": peak_memory(self._device)}
        if self._cuda:
            now["memory/reserved_gib"] = torch.cuda.max_memory_reserved(self._device) / _GIB
        self._most = {name: max(value, self._most.get(name, 0.0)) for name, value in now.items()}

    @contextmanager
    def explained(self, when: str) -> Iterator[None]:
        """While entered, running out of memory outside of forward and backward is told in one line.

        Args:
            when: "the weights moved in step 3".

        Raises:
            OutOfMemory: with what takes less.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            first = str(error).splitlines()[0][:200]
            raise OutOfMemory(
                f"out of memory on {self._device} while {when}. What takes less: rollouts with grpo.num_prompts or "
                "grpo.num_generations, states of the optimizer with engine=zero2, zero3 or zero2_offload, everything "
                f"with more devices; `arcvideo preflight` says how much of each a stage needs. ({first})"
            ) from error

    def explain(self, error: BaseException, *, batch: Batch) -> OutOfMemory:
        """Return the error a user should see instead."""
        frames = sum(media.frame_count for media in batch.media)
        tokens = batch.input_ids.numel()
        keys = ", ".join(batch.keys[:8]) + (" ..." if len(batch.keys) > 8 else "")
        first = str(error).splitlines()[0][:200]
        return OutOfMemory(
            f"out of memory on {self._device} in a micro-batch of {tokens} tokens, {frames} frames, "
            f"{batch.target_positions.numel()} targets; "
            f"samples {keys}. {self._remedy(tokens, longest(batch))}. ({first})"
        )

    def _remedy(self, tokens: int, single: int) -> str:
        fits = tokens // 2
        if self._cuda and self._per_token:
            free = 0.9 * (torch.cuda.get_device_properties(self._device).total_memory - self._held)
            fits = min(int(free / self._per_token), tokens - 1)
        fits = max(fits // 128 * 128, 128)
        basis = "by the memory of earlier steps" if self._per_token else "a first guess: half of this row"
        parts = [f"What fits: data.token_budget={fits} ({basis})"]
        if single > fits:
            parts.append(f"its longest sample alone has {single} tokens and would then be refused by the plan")
        parts.append(
            "or recompute activations with model.activation_checkpointing=full, or cut the state with engine=zero3"
        )
        return "; ".join(parts)


def longest(batch: Batch) -> int:
    """Return tokens of the longest family of a row: a prefix with its longest branch."""
    starts, parents = batch.segments.starts.tolist(), batch.segments.parents.tolist()
    lengths = [last - first for first, last in pairwise(starts)]
    families = [
        length + (lengths[parent] if parent >= 0 else 0) for length, parent in zip(lengths, parents, strict=True)
    ]
    return max(families, default=0)


def accounting(*, device: torch.device, peak: float | None, ranks: int) -> str:
    """Return one sentence: what the speed figures of the progress line mean."""
    useful = "useful FLOPs (forward, and backward of what trains; no recomputation, no rollouts)"
    if peak is None:
        return f"TFLOP/s counts {useful}; the peak of {device.type} is not known, runner.peak_tflops=N shows MFU"
    return f"MFU is {useful} over {peak / 1e12:g} TFLOP/s x {ranks} devices"
