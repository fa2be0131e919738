"""What a recipe needs: `python -m arcvideo.preflight recipe=NAME [stage=NAME,...] [device=h200] [gpus=8]`.

  ... utilization=0.4 gpu_memory=GIB host_memory=GIB   what the estimate assumes and what there is
  ... override ...                                     for every stage, as arcvideo.pipeline takes them

Per stage: samples, tokens, packs, steps, FLOPs, wall time, memory and disk, from settings and index alone; no torch, no
weights. The index must be there (`python -m arcvideo.data.shards index SHARDS`). Tokens
that no run has counted yet are taken for questions and answers of ordinary length; `max_clips` and `repeat` of a source
are not looked at.
Exit status 1: something is missing; 2: something cannot fit, and the line says which override would make it fit.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arcvideo.config import RunConfig
from arcvideo.data.index import ShardIndex, open_index
from arcvideo.data.lengths import LENGTHS
from arcvideo.data.members import expand_shards
from arcvideo.data.mixture import frame_counts, frame_limits
from arcvideo.data.render import media_length
from arcvideo.data.settings import SourceSettings
from arcvideo.flops import (
    ForwardFlops,
    Segment,
    decoder_flops,
    decoder_weights,
    head_weights,
    media_flops,
    peak_flops,
)
from arcvideo.model.settings import ModelSettings
from arcvideo.recipe import load_recipe, planned_stages
from arcvideo.runner.settings import zero_stage

GIB = float(1 << 30)
GPU_MEMORY = {"h20": 96.0, "a100": 80.0, "h100": 80.0, "h200": 141.0}
"""GB of one device (vendor data sheets)."""
CPU_PEAK = 5e10
"""FLOPs a second assumed of one CPU process; a guess that only orders of magnitude should be read from."""
ROOM = 0.92
"""Share of a device's memory that may be planned for: the rest is CUDA's context, buckets and fragmentation."""
TAR_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it would run."""

    device: str = "h200"
    """h20, a100, h100, h200 or cpu."""
    gpus: int = 8
    """Processes, one a device."""
    utilization: float = 0.4
    """Share of the device's peak that training reaches, assumed."""

    @property
    def peak(self) -> float:
        """FLOPs a second of one device."""
        return peak_flops(self.device) or CPU_PEAK


@dataclass(frozen=True, kw_only=True)
class Volume:
    """What one epoch of a stage reads, expected from the index."""

    samples: float = 0.0
    tokens: float = 0.0
    targets: float = 0.0
    frames: float = 0.0
    chunks: float = 0.0
    pairs: float = 0.0

    def __add__(self, other: Volume) -> Volume:
        return Volume(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def volume(name: str, source: SourceSettings, *, config: RunConfig) -> Volume:
    """Of one source.

    Raises:
        ValueError: shards or indexes are missing, or a shard's header is damaged; the message names file and remedy.
    """
    total = Volume()
    try:
        shards = expand_shards(source.shards)
    except ValueError as error:
        raise ValueError(f"data.sources.{name}.{error}") from None
    for shard in shards:
        with open(shard, "rb") as file:
            header = file.read(TAR_BLOCK)
        if len(header) < TAR_BLOCK or header[257:262] != b"ustar":
            raise ValueError(f"data.sources.{name}: {shard} is no tar file; write the shard again")
        index = open_index(shard)
        if index is None:
            raise ValueError(
                f"data.sources.{name}: {shard} has no index, or changed since; run "
                f"`python -m arcvideo.data.shards index '{source.shards}'`"
            )
        total += _shard_volume(index, source=source, config=config)
    return total


def _shard_volume(index: ShardIndex, *, source: SourceSettings, config: RunConfig) -> Volume:
    clips, items, rows = index.clips, np.asarray(index.items), _counted(index, source=source, config=config)
    wanted = np.array([not source.tasks or source.tasks.get(task, 0.0) > 0 for task in index.tasks], dtype=bool)
    tagged = np.array([set(source.tags) <= set(tags) for tags in index.tagsets], dtype=bool)
    keep = wanted[items["task"]] & tagged[items["tagset"]] & (rows["branch"] > 0)
    if source.style != "plain" and config.stage.objective != "grpo":
        keep &= items["think"]
    count = np.bincount(items["clip"][keep], minlength=len(clips))
    own = np.flatnonzero(count)
    drawn = np.minimum(count[own], source.items_per_clip or count[own])
    branch = np.bincount(items["clip"][keep], rows["branch"][keep], minlength=len(clips))[own] / count[own]
    targets = np.bincount(items["clip"][keep], rows["targets"][keep], minlength=len(clips))[own] / count[own]
    media = clips["media_size"][own] > 0
    limit = frame_limits(
        clips["duration"],
        clip=items["clip"][keep],
        text=1 + rows["before"][keep].astype(np.int64) + rows["branch"][keep],
        settings=config.data,
        layout=config.layout,
    )
    frames = np.where(media, frame_counts(clips["duration"][own], max_frames=limit[own]), 0)
    prefix = np.where(media, 1 + media_length(frames, layout=config.layout), 0)
    passes = source.fraction * (source.weight if config.data.unit == "epochs" else 1.0)
    return Volume(
        samples=passes * float(drawn.sum()),
        tokens=passes * float((prefix + drawn * branch).sum()),
        targets=passes * float((drawn * targets).sum()),
        frames=passes * float(frames.sum()),
        chunks=passes * float(np.ceil(frames / config.layout.chunk_seconds).sum()),
        pairs=passes * float((prefix**2 / 2 + drawn * (branch**2 / 2 + branch * prefix)).sum()),
    )


def _counted(index: ShardIndex, *, source: SourceSettings, config: RunConfig) -> np.ndarray:
    """Stored token counts for this style and wording, whichever tokenizer made the newest ones."""
    found = sorted(
        index.folder.glob(f"tokens-*-{source.style}-{config.data.wording}.npy"), key=lambda path: path.stat().st_mtime
    )
    if found:
        return np.load(found[-1], mmap_mode="r", allow_pickle=False)
    # Not counted yet: a question and an answer of ordinary length, so that media, which dominate, still count exactly.
    rows = np.zeros(len(index.items), dtype=LENGTHS)
    rows["branch"], rows["targets"] = (400, 300) if source.style == "think" else (150, 60)
    return rows


def parameters(model: ModelSettings) -> dict[str, float]:
    """Matrix weights by module, from sizes; norms and biases are left out, below one in a thousand."""
    vision, audio, width = model.vision, model.audio, model.text.hidden_size
    wide = vision.hidden_size
    return {
        "llm": decoder_weights(model.text) + head_weights(model.text),
        "vit": vision.num_hidden_layers * (4 * wide**2 + 2 * wide * vision.intermediate_size)
        + (vision.max_image_size // vision.patch_size) ** 2 * wide,
        "vision_projector": 16 * wide**2 + 4 * wide * width,
        "whisper": audio.encoder_layers * (4 * audio.d_model**2 + 2 * audio.d_model * audio.encoder_ffn_dim),
        "audio_projector": audio.d_model * width + width**2,
    }


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory(config: RunConfig, *, ranks: int, stage: int | None = None) -> Memory:
    """Of one device under a ZeRO stage (the configured one by default); whole towers stay on every rank.

    bf16 under ZeRO 1-3: bf16 weights, fp32 gradient sums, fp32 masters and two moments; else fp32 everywhere.
    """
    zero = zero_stage(config.engine) if stage is None else stage
    sizes = parameters(config.model)
    trained = sum(size for name, size in sizes.items() if name in config.stage.train)
    frozen = sum(sizes.values()) - trained
    half = config.runner.precision == "bf16" and zero > 0
    width = 2 if half else 4
    reference = sizes["llm"] if config.stage.objective == "grpo" and config.grpo.beta > 0 else 0
    cut = {level: ranks if zero >= level else 1 for level in (1, 2, 3)}
    return Memory(
        weights=width * (trained / cut[3] + frozen + reference),
        gradients=4 * trained / cut[2],
        optimizer=(12 if half else 8) * trained / cut[1],
        activations=_activations(config),
    )


def _activations(config: RunConfig) -> float:
    """Bytes kept for the backward of one packed row: inputs of layers, and what one or all layers keep inside."""
    text, tokens = config.model.text, config.data.token_budget
    width = 2 if config.runner.precision == "bf16" else 4
    heads = (text.num_attention_heads * 2 + text.num_key_value_heads * 2) * text.attention_head_dim
    inside = 4 * text.hidden_size + heads + 4 * text.intermediate_size
    kept = text.num_hidden_layers * text.hidden_size + inside
    return float(width * tokens * (kept if config.model.checkpoint_layers else text.num_hidden_layers * inside))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One stage, before it runs."""

    name: str
    epoch: Volume
    packs: int
    steps_per_epoch: int
    steps: int
    flops: float
    seconds: float
    gpu: Memory
    host: float
    disk: float


def estimate(config: RunConfig, *, machine: Machine) -> Estimate:
    """What a stage would take.

    Raises:
        ValueError: missing or damaged shards.
    """
    epoch = sum((volume(name, source, config=config) for name, source in config.data.sources.items()), Volume())
    reinforced = config.stage.objective == "grpo"
    packs = math.ceil(epoch.tokens / config.data.token_budget)
    if reinforced:
        steps_per_epoch = max(1, int(epoch.samples) // config.grpo.num_prompts)
    else:
        steps_per_epoch = max(1, math.ceil(packs / config.data.packs_per_step))
    flops = config.runner.steps / steps_per_epoch * epoch_flops(config, epoch=epoch)
    sizes = parameters(config.model)
    trained = sum(size for name, size in sizes.items() if name in config.stage.train)
    return Estimate(
        name=config.output or config.stage.name,
        epoch=epoch,
        packs=packs,
        steps_per_epoch=steps_per_epoch,
        steps=config.runner.steps,
        flops=flops,
        seconds=flops / (machine.peak * machine.utilization * machine.gpus),
        gpu=memory(config, ranks=machine.gpus),
        # Every rank loads the whole model in fp32 before DeepSpeed takes it; rank 0 also gathers what it trained.
        host=4 * (machine.gpus * sum(sizes.values()) + trained),
        # fp32 weights and two moments each; one more while it is written, and the export.
        disk=12 * trained * (config.runner.keep_last + 1) + 4 * sum(sizes.values()),
    )


def epoch_flops(config: RunConfig, *, epoch: Volume) -> float:
    """Forward and backward over an epoch; for GRPO with its completions, sampled, scored and learnt from."""
    text, towers = config.model.text, not config.feature_cache
    token = decoder_flops(text, [Segment(length=1)], targets=0)
    grpo = config.grpo
    completions = epoch.samples * grpo.num_generations if config.stage.objective == "grpo" else 0.0
    tokens = epoch.tokens + completions * grpo.max_completion_length
    pairs = epoch.pairs + completions * grpo.max_completion_length * (epoch.tokens / max(epoch.samples, 1.0))
    targets = completions * grpo.max_completion_length or epoch.targets
    work = ForwardFlops(
        decoder=token.decoder * tokens, attention=token.attention * pairs, head=2.0 * head_weights(text) * targets
    ) + media_flops(
        config.model,
        frames=round(epoch.frames),
        seconds=round(epoch.frames),
        chunks=round(epoch.chunks),
        seen=None if towers else 0,
        heard=None if towers else 0,
    )
    passes = (2.0 if grpo.beta > 0 else 1.0) * work.total if completions else 0.0
    return passes + work.training(config.stage.train)


def misfits(config: RunConfig, *, found: Estimate, machine: Machine, gpu_gib: float, host_gib: float) -> list[str]:
    """What cannot fit, one sentence each, with the override that would."""
    problems = []
    unit = config.grpo.num_prompts if config.stage.objective == "grpo" else config.data.packs_per_step
    key = "grpo.num_prompts" if config.stage.objective == "grpo" else "data.packs_per_step"
    if unit % machine.gpus:
        up = math.ceil(unit / machine.gpus) * machine.gpus
        problems.append(f"{found.name}: {key}={unit} is not a multiple of {machine.gpus} ranks: {key}={up}")
    if found.gpu.total > gpu_gib * GIB * ROOM:
        need = f"{found.name}: {found.gpu.total / GIB:.0f} GiB on a device of {gpu_gib:.0f} GiB"
        now = zero_stage(config.engine)
        fitting = [
            level for level in range(now + 1, 4) if memory(config, ranks=machine.gpus, stage=level).total
            <= gpu_gib * GIB * ROOM
        ]  # fmt: skip
        remedy = f"engine=zero{fitting[0]}" if fitting else ""
        if not remedy and not config.model.checkpoint_layers:
            remedy = "model.checkpoint_layers=true"
        problems.append(f"{need}: {remedy or 'more gpus=, or fewer modules in stage.train'}")
    if found.host > host_gib * GIB:
        problems.append(
            f"{found.name}: {found.host / GIB:.0f} GiB of host memory, {host_gib:.0f} there: fewer gpus= on a node"
        )
    folder = next(path for path in (config.stage_dir.absolute(), *config.stage_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if found.disk > free:
        problems.append(
            f"{found.name}: {found.disk / GIB:.1f} GiB of checkpoints, {free / GIB:.1f} free in {folder}: "
            "runner.keep_last=1, or run_dir= on another disk"
        )
    return problems


def table(found: Sequence[Estimate], *, machine: Machine) -> str:
    """The estimates, a line a stage."""
    rows = [
        f"{'stage':<14}{'samples':>10}{'tokens':>11}{'packs':>8}{'steps/ep':>9}{'steps':>7}{'FLOPs':>10}{'hours':>9}"
        f"{'weights':>9}{'grads':>7}{'optim':>7}{'activ':>7}{'GPU':>7}{'host':>7}{'disk':>7}"
    ]
    for one in found:
        gpu = one.gpu
        sizes = (gpu.weights, gpu.gradients, gpu.optimizer, gpu.activations, gpu.total, one.host, one.disk)
        rows.append(
            f"{one.name:<14}{one.epoch.samples:>10.0f}{one.epoch.tokens:>11.3g}{one.packs:>8}{one.steps_per_epoch:>9}"
            f"{one.steps:>7}{one.flops:>10.2g}{one.seconds / 3600:>9.2f}"
            f"{sizes[0] / GIB:>9.1f}" + "".join(f"{size / GIB:>7.1f}" for size in sizes[1:])
        )
    assumed = f"{machine.gpus} x {machine.device} at {machine.utilization:.0%} of {machine.peak / 1e12:g} TFLOP/s"
    return "\n".join([*rows, f"samples to steps/ep: of an epoch. Memory and disk in GiB. Assumed: {assumed}."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Estimate the stages of a recipe, say what does not fit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    keys = ("recipe", "stage", "device", "gpus", "utilization", "gpu_memory", "host_memory")
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in keys}
    extra = [word for word in words if word.partition("=")[0] not in keys]
    try:
        sys.exit(_preflight(own, extra=extra))
    except ValueError as error:
        sys.exit(f"error: {error}")


def _preflight(own: dict[str, str], *, extra: Sequence[str]) -> int:
    if "recipe" not in own:
        raise ValueError("name one recipe: python -m arcvideo.preflight recipe=tiny_shorts")
    device = own.get("device", "h200").lower()
    machine = Machine(
        device=device,
        gpus=int(own.get("gpus", "1" if device == "cpu" else "8")),
        utilization=float(own.get("utilization", "0.4")),
    )
    if machine.device not in (*GPU_MEMORY, "cpu") or machine.gpus < 1 or not 0 < machine.utilization <= 1:
        raise ValueError(
            f"device must be {', '.join(GPU_MEMORY)} or cpu, gpus at least 1, utilization in (0, 1]: {own}"
        )
    host_there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    host = float(own.get("host_memory", host_there if machine.device == "cpu" else math.inf))
    gpu = float(own.get("gpu_memory", GPU_MEMORY.get(machine.device, host_there) * (1e9 / GIB)))
    stages = planned_stages(load_recipe(own["recipe"]), extra=extra)
    wanted = own["stage"].split(",") if "stage" in own else [stage.name for stage in stages]
    unknown = sorted(set(wanted) - {stage.name for stage in stages})
    if unknown:
        raise ValueError(f"stage={unknown[0]}: the recipe has {', '.join(stage.name for stage in stages)}")
    found, problems = [], []
    for stage in stages:
        if stage.name in wanted:
            one = estimate(stage.config, machine=machine)
            found.append(one)
            problems += misfits(stage.config, found=one, machine=machine, gpu_gib=gpu, host_gib=host)
    print(table(found, machine=machine))
    if any(stage.name in wanted and stage.config.stage.objective == "grpo" for stage in stages):
        print("Not counted for grpo: keys and values of decoding, and whole weights gathered for it under ZeRO 3.")
    for problem in problems:
        print(f"does not fit: {problem}")
    return 2 if problems else 0


if __name__ == "__main__":
    main()
