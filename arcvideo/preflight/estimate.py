"""One stage before it runs: work, time, memory and disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from arcvideo.composing.config import RunConfig
from arcvideo.composing.recipe import ExpectedSource
from arcvideo.flops import ForwardFlops, Segment, decoder_flops, decoder_weights, head_weights, media_flops
from arcvideo.preflight.machine import Machine
from arcvideo.preflight.memory import Memory, checkpoint_disk, host_memory, memory
from arcvideo.preflight.row import Row, fullest_row
from arcvideo.preflight.volume import Volume, volume


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a stage would take."""

    name: str
    """Of its folder."""
    epoch: Volume
    steps: int
    """Of the stage."""
    flops: float
    """Useful ones, rollouts included."""
    seconds: float
    """Of the steps; without loading and evaluation."""
    rollout_seconds: float
    """Of them in decoding."""
    gpu: Memory
    host: float
    """Bytes."""
    disk: float
    """Bytes."""
    traced: bool = False
    """Whether the activations were traced."""


def estimate(config: RunConfig, *, machine: Machine, expect: Mapping[str, ExpectedSource] | None = None) -> Estimate:
    """Return what a stage would take.

    Args:
        expect: source -> what the recipe expects of it, for sources whose shards are not there.

    Raises:
        ValueError: missing, damaged or unusable shards.
    """
    epoch = volume(config, expect=expect)
    epochs = config.runner.steps / epoch.steps
    flops = epochs * epoch_flops(config, epoch=epoch)
    decoding = _decoding_seconds(config, epoch=epoch, machine=machine) * config.runner.steps
    return Estimate(
        name=config.output or config.stage.name,
        epoch=epoch,
        steps=config.runner.steps,
        flops=flops,
        seconds=flops / (machine.peak * machine.utilization * machine.gpus) + decoding,
        rollout_seconds=decoding,
        gpu=_memory(config, epoch=epoch, machine=machine),
        host=host_memory(config, ranks=machine.gpus),
        disk=checkpoint_disk(config),
    )


def fits(config: RunConfig, *, epoch: Volume, machine: Machine) -> bool:
    """Return whether a stage has room on devices and host."""
    return (
        _memory(config, epoch=epoch, machine=machine).total <= machine.room
        and host_memory(config, ranks=machine.gpus) <= machine.host_gib * (1 << 30)
        and step_unit(config)[1] % machine.gpus == 0
    )


def step_unit(config: RunConfig) -> tuple[str, int]:
    """Return the setting that the ranks divide among themselves, and its value."""
    if config.objective.sampled:
        return "grpo.num_prompts", config.grpo.num_prompts
    return "data.packs_per_step", config.data.packs_per_step


def epoch_flops(config: RunConfig, *, epoch: Volume) -> float:
    """Forward and backward over an epoch; for GRPO with its completions, sampled, scored and learnt from."""
    text, grpo = config.model.text, config.grpo
    sampled = config.objective.sampled
    token = decoder_flops(text, [Segment(length=1)], targets=0)
    written = epoch.samples * grpo.num_generations * grpo.max_completion_length if sampled else 0.0
    mean_prompt = epoch.tokens / max(epoch.samples, 1.0)
    none = 0 if config.feature_cache else None
    work = ForwardFlops(
        decoder=token.decoder * (epoch.tokens + written),
        attention=token.attention * (epoch.pairs + written * (mean_prompt + grpo.max_completion_length / 2)),
        head=2.0 * head_weights(text) * (written or epoch.targets),
    ) + media_flops(
        config.model, frames=round(epoch.frames), seconds=round(epoch.frames), chunks=round(epoch.chunks),
        seen=none, heard=none,
    )  # fmt: skip
    adapted = config.lora.modules if config.lora else []
    learning = work.training([f"{name}.lora" if name in adapted else name for name in config.stage.train])
    if config.keeps_reference and not sampled:
        # The reference, the same language model, reads every pack once.
        return learning + work.decoder + work.attention + work.head
    if not sampled:
        return learning
    # Sampled once, scored once by the reference, learnt from num_iterations times.
    return work.total * (2.0 if config.keeps_reference else 1.0) + learning * grpo.num_iterations


def _decoding_seconds(config: RunConfig, *, epoch: Volume, machine: Machine) -> float:
    """Return per step: every token that is decoded reads the weights and the keys and values of all rows once."""
    if not config.objective.sampled:
        return 0.0
    grpo, text = config.grpo, config.model.text
    width = 2 if config.runner.precision == "bf16" else 4
    prompts = math.ceil(grpo.num_prompts / machine.gpus)
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.attention_head_dim * width
    mean_prompt = epoch.tokens / max(epoch.samples, 1.0)
    cached = token * prompts * (mean_prompt + grpo.num_generations * grpo.max_completion_length / 2)
    read = width * (decoder_weights(text) + head_weights(text)) + cached
    return grpo.max_completion_length * read / (machine.bandwidth * machine.utilization) / grpo.num_iterations


def row_of(config: RunConfig, *, epoch: Volume) -> Row:
    """Return the fullest row that an epoch may have."""
    targets = epoch.targets / max(epoch.tokens, 1.0)
    return fullest_row(config, targets=targets, longest=epoch.longest, clips=epoch.frames > 0)


def _memory(config: RunConfig, *, epoch: Volume, machine: Machine) -> Memory:
    return memory(config, ranks=machine.gpus, row=row_of(config, epoch=epoch))
