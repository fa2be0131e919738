"""Bytes on a device, around it and on disk, from sizes and settings. Estimates: unmeasured on GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arcvideo.composing.config import RunConfig
from arcvideo.flops import decoder_weights, head_weights
from arcvideo.model.settings import ModelSettings, adapter_targets
from arcvideo.preflight.activations import FRAMES_TOGETHER, activations
from arcvideo.preflight.row import Row
from arcvideo.runner.settings import zero_stage

PROCESS = 4 * (1 << 30)
"""Of one rank on the host: torch, CUDA's libraries, DeepSpeed and buffers. Assumed."""
REDUCED_AT_ONCE = 500_000_000
"""Numbers that DeepSpeed's BF16_Optimizer (bf16 under ZeRO-1) adds up over ranks together, in fp32."""

PREFILL_TOKENS = 32_768
"""Padded tokens of prompts that one forward takes (`sampling/prefill.py`)."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, where each part is largest."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    rollout: float = 0.0
    """Of prefilling and decoding, and whole weights gathered for it; not there at the same time as activations."""
    buffers: float = 0.0
    """Of collectives."""
    features: float = 0.0
    """Outputs of frozen towers for all clips of a rollout, or of a step of pairs: sampling, reference and updates read
    them."""

    @property
    def total(self) -> float:
        """At the worst moment."""
        kept = self.weights + self.gradients + self.optimizer + self.buffers + self.features
        return kept + max(self.activations, self.rollout)


def parameters(model: ModelSettings) -> dict[str, float]:
    """Return matrix weights by module, from sizes; norms and biases are left out, below one in a thousand."""
    vision, audio, width = model.vision, model.audio, model.text.hidden_size
    wide = vision.hidden_size
    return {
        "llm": decoder_weights(model.text) + head_weights(model.text) * (1 if model.text.tie_word_embeddings else 2),
        "vit": vision.num_hidden_layers
        * (4 * wide**2 + (3 if model.kind.gated_vision else 2) * wide * vision.intermediate_size)
        + (vision.max_image_size // vision.patch_size) ** 2 * wide,
        "vision_projector": 16 * wide**2 + 4 * wide * width,
        "whisper": audio.encoder_layers * (4 * audio.d_model**2 + 2 * audio.d_model * audio.encoder_ffn_dim),
        "audio_projector": audio.d_model * width + width**2,
    }


def trained_parameters(config: RunConfig) -> float:
    """Return weights that learn; of modules with adapters, the adapters'."""
    sizes, adapted = parameters(config.model), config.lora.modules if config.lora else []
    whole = sum(size for name, size in sizes.items() if name in config.stage.train and name not in adapted)
    return whole + (_adapters(config) if adapted else 0.0)


def _adapters(config: RunConfig) -> float:
    """Of the decoder: an input and an output matrix of `rank` for each of its target layers."""
    assert config.lora is not None
    text, rank = config.model.text, config.lora.rank
    heads = text.num_attention_heads * text.attention_head_dim
    both = heads + 2 * text.num_key_value_heads * text.attention_head_dim
    queries, keys = heads, text.num_key_value_heads * text.attention_head_dim
    widths = {
        "qkv_proj": text.hidden_size + both,
        "q_proj": text.hidden_size + queries,
        "k_proj": text.hidden_size + keys,
        "v_proj": text.hidden_size + keys,
        "gate_proj": text.hidden_size + text.intermediate_size,
        "up_proj": text.hidden_size + text.intermediate_size,
        "o_proj": heads + text.hidden_size,
        "gate_and_up_proj": text.hidden_size + 2 * text.intermediate_size,
        "down_proj": text.intermediate_size + text.hidden_size,
    }
    targets = adapter_targets(config.lora, family=config.model.family)
    return float(text.num_hidden_layers * rank * sum(widths.get(name, 0) for name in targets))


def memory(config: RunConfig, *, ranks: int, row: Row) -> Memory:
    """Of one device; whole towers stay on every rank.

    bf16 under ZeRO 1-3: bf16 weights, fp32 gradient sums, fp32 masters and two moments; bf16 under ZeRO 0: fp32 weights
    and the copies that autocast keeps; else fp32 everywhere. What is offloaded lies in host memory, but for the
    gradient sums of ZeRO-2, which DeepSpeed keeps on the device.

    Args:
        ranks: devices that the states are cut over.
        row: the packed row that holds most.
    """
    zero = zero_stage(config.engine)
    sizes, trained = parameters(config.model), trained_parameters(config)
    width = _width(config)
    adapted = sizes["llm"] if config.lora and "llm" in config.lora.modules else 0.0
    frozen = sum(size for name, size in sizes.items() if name not in config.stage.train) + adapted
    grpo = config.grpo if config.objective.sampled else None
    # Under adapters the reference is the same weights with the adapters off.
    reference = sizes["llm"] if config.keeps_reference and not adapted else 0.0
    cut = {level: ranks if zero >= level else 1 for level in (1, 2, 3)}
    states, host_weights = offloaded(config, "offload_optimizer"), offloaded(config, "offload_param")
    copies = 2 * sum(sizes.values()) if config.runner.precision == "bf16" and width == 4 else 0.0
    return Memory(
        weights=width * ((0.0 if host_weights else trained / cut[3]) + frozen + reference) + copies,
        gradients=0.0 if states and (zero == 3 or width == 4) else 4 * trained / cut[2],
        optimizer=0.0 if states else (12 if width == 2 else 8) * trained / cut[1],
        activations=activations(config, row=row).peak,
        rollout=gathered(config) + _rollout(config, row=row, ranks=ranks) if grpo else 0.0,
        buffers=_buffers(config, trained=trained, ranks=ranks),
        features=_clips(config, row=row, ranks=ranks) * _outputs(config, frames=row.frames),
    )


def gathered(config: RunConfig) -> float:
    """Return bytes of weights that a rollout needs whole and ZeRO-3 has cut."""
    cut = config.objective.sampled and zero_stage(config.engine) >= 3
    return _width(config) * parameters(config.model)["llm"] if cut else 0.0


def _clips(config: RunConfig, *, row: Row, ranks: int) -> int:
    """Return the clips of a step whose towers' outputs a rank keeps on the device; none while a tower learns."""
    if not towers_ahead(config):
        return 0
    if config.objective.sampled:
        return -(-config.grpo.num_prompts // ranks)
    return -(-config.data.packs_per_step // ranks) * row.families


def towers_ahead(config: RunConfig) -> bool:
    """Return whether clips go through the towers before the forward that trains: for a rollout or a reference."""
    read_twice = config.objective.sampled or (config.objective.paired and config.keeps_reference)
    return read_twice and not {"vit", "whisper"} & set(config.stage.train)


def _outputs(config: RunConfig, *, frames: int) -> int:
    """Return bytes of what the towers give of a clip."""
    vision, audio = config.model.vision, config.model.audio
    patches = config.layout.groups(frames) * (vision.force_image_size // vision.patch_size) ** 2
    heard = -(-frames * 50 // audio.max_source_positions) * audio.max_source_positions
    return _width(config) * (patches * vision.hidden_size + heard * audio.d_model)


def _buffers(config: RunConfig, *, trained: float, ranks: int) -> float:
    """Return what DeepSpeed fills for collectives: what is added up at once and, under ZeRO-3, what is whole at
    once.
    """
    zero, width = zero_stage(config.engine), _width(config)
    if ranks == 1 or zero == 0:
        return 0.0
    if zero == 1 and width == 2:
        return 4 * min(REDUCED_AT_ONCE, trained)
    keys: dict[str, Any] = config.engine.get("zero_optimization", {})
    # With overlap_comm one bucket fills while another is sent.
    reduced = min(keys.get("reduce_bucket_size", 5e8), trained) * (2 if keys.get("overlap_comm", zero == 3) else 1)
    if zero < 3:
        return width * (reduced + min(keys.get("allgather_bucket_size", 5e8), trained))
    live = keys.get("stage3_max_live_parameters", 1e9) + keys.get("stage3_prefetch_bucket_size", 5e7)
    return width * (reduced + min(live, trained))


def host_memory(config: RunConfig, *, ranks: int) -> float:
    """Return bytes around the devices of one node: what loading takes, then offloaded states, copies to save, and
    batches.
    """
    sizes, trained = parameters(config.model), trained_parameters(config)
    whole, half = sum(sizes.values()), _width(config) == 2 and not config.feature_cache
    # One rank reads all bits; the others half of them where weights are bf16.
    loading = whole * (4 + (ranks - 1) * (2 if half else 4))
    # fp32 weights of everything at the end, on the first rank, which exports them; evaluation reads the export.
    closing = 4 * trained
    # fp32 masters, gradients and two moments, and the bf16 weights on their way.
    states = 18.0 * trained if offloaded(config, "offload_optimizer") else 0.0
    states += 2.0 * trained if offloaded(config, "offload_param") else 0.0
    # A checkpoint is copied before it is written: fp32 weights and two moments. Frozen weights keep all their bits.
    frozen = 4 * (whole - trained) * (1 if half else ranks) if _width(config) == 2 else 0.0
    running = states + max(12 * trained, closing) + max(frozen, 0.0) + _batches(config)
    return max(loading, running) + ranks * PROCESS


def checkpoint_disk(config: RunConfig) -> float:
    """Return bytes of a stage's checkpoints and its export."""
    return being_written(config) * (config.runner.keep_last + 1) + 4 * sum(parameters(config.model).values())


def being_written(config: RunConfig) -> float:
    """Return bytes of one checkpoint, which one stands beside those that are kept while it is written."""
    return 12.0 * trained_parameters(config)  # fp32 weights and two moments each


def offloaded(config: RunConfig, what: str) -> bool:
    """Return whether DeepSpeed's `offload_optimizer` or `offload_param` sends something to the host."""
    settings: dict[str, Any] = config.engine.get("zero_optimization", {}).get(what) or {}
    return settings.get("device", "none") != "none"


def _width(config: RunConfig) -> int:
    """Return bytes of a weight on the device."""
    return 2 if config.runner.precision == "bf16" and zero_stage(config.engine) > 0 else 4


def _rollout(config: RunConfig, *, row: Row, ranks: int) -> float:
    """Return bytes of all prompts of a rank decoded together: each prompt's keys and values once, its completions'
    beside it. Outputs of towers are counted elsewhere.

    Prompts are prefilled a part at a time: of those a layer holds its inputs and outputs, the fused projection and the
    gated unit, and its keys and values twice while they are laid out. A turn of decoding holds logits of all rows, in
    fp32 and twice in fp64.
    """
    text, grpo, width = config.model.text, config.grpo, _width(config)
    layer = 2 * text.num_key_value_heads * text.attention_head_dim * width
    prompts = -(-grpo.num_prompts // ranks)
    prompt = row.tokens(config) / row.families - sum(row.branches)
    together = min(prompts, max(int(PREFILL_TOKENS // prompt), 1)) * prompt
    fused = "gate_and_up_proj" in config.model.kind.adapter_targets
    inside = width * (4 * text.hidden_size + (4 if fused else 3) * text.intermediate_size)
    own = grpo.num_generations * grpo.max_completion_length
    cached = text.num_hidden_layers * layer * prompts
    turn = prompts * grpo.num_generations * text.vocab_size * (4 + 2 * 8)
    sampling = cached * prompt + max(together * max(inside, layer), cached * own + turn)
    return float(max(sampling, _encoding(config, row=row, ranks=ranks)))


def _encoding(config: RunConfig, *, row: Row, ranks: int) -> float:
    """Return bytes of a rollout's clips on their way through the towers, without the outputs: all pictures twice, laid
    end to end, and a layer at work on as many frames as are read at once; at the end the outputs, which are joined.
    """
    clips, width, vision = _clips(config, row=row, ranks=ranks), _width(config), config.model.vision
    if config.feature_cache or not clips:
        return 0.0
    pictures = clips * width * row.frames * 3 * vision.force_image_size**2
    inside = width * ((3 if config.model.kind.gated_vision else 2) * vision.intermediate_size + 2 * vision.hidden_size)
    frames = min(FRAMES_TOGETHER, clips * config.layout.groups(row.frames))
    patches = frames * (vision.force_image_size // vision.patch_size) ** 2
    return max(2.0 * pictures + patches * inside, pictures + clips * _outputs(config, frames=row.frames))


def _batches(config: RunConfig) -> float:
    """Return pixels of the steps that are prepared ahead, over all ranks of a node."""
    data, side = config.data, config.model.vision.force_image_size
    if config.feature_cache:
        return 0.0
    frames = data.token_budget / max(config.layout.tokens_per_frame, 1)
    ahead = 1 + (data.prefetch_steps if data.workers else 0)
    return ahead * data.packs_per_step * frames * 3 * side**2
