"""Bytes on a device, around it and on disk, from sizes and settings. Estimates: unmeasured on GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arcvideo.config import RunConfig
from arcvideo.flops import decoder_weights, head_weights
from arcvideo.model.settings import ModelSettings, adapter_targets
from arcvideo.runner.settings import zero_stage

LOGIT_BYTES = 10
"""Of one logit: bf16, its fp32 copy, and the copy's gradient."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, where each part is largest."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    rollout: float = 0.0
    """Keys and values of decoding, and whole weights gathered for it; not there at the same time as activations."""

    @property
    def total(self) -> float:
        """At the worst moment."""
        return self.weights + self.gradients + self.optimizer + max(self.activations, self.rollout)


def parameters(model: ModelSettings) -> dict[str, float]:
    """Matrix weights by module, from sizes; norms and biases are left out, below one in a thousand."""
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
    """Weights that learn; of modules with adapters, the adapters'."""
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


def memory(config: RunConfig, *, ranks: int, longest: int, targets: float = 0.1) -> Memory:
    """Of one device; whole towers stay on every rank.

    bf16 under ZeRO 1-3: bf16 weights, fp32 gradient sums, fp32 masters and two moments; else fp32 everywhere. An
    optimizer or weights that are offloaded lie in host memory.

    Args:
        longest: tokens of the longest pack or prompt.
        targets: supervised tokens per token of a pack.
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
    gathered = width * sizes["llm"] if grpo and zero >= 3 else 0.0
    return Memory(
        weights=width * ((0.0 if host_weights else trained / cut[3]) + frozen + reference),
        gradients=0.0 if states else 4 * trained / cut[2],
        optimizer=0.0 if states else (12 if width == 2 else 8) * trained / cut[1],
        activations=_activations(config, longest=longest, targets=targets),
        rollout=gathered + _key_values(config, prompt=longest, ranks=ranks) if grpo else 0.0,
    )


def host_memory(config: RunConfig, *, ranks: int) -> float:
    """Bytes around the devices of one node: what loading, offloaded states and prepared batches take."""
    sizes, trained = parameters(config.model), trained_parameters(config)
    # Every rank loads the whole model in fp32 before DeepSpeed takes it; rank 0 also gathers what it trained.
    loading = 4 * (ranks * sum(sizes.values()) + trained)
    # fp32 masters, two moments and gradients; bf16 weights.
    running = (16.0 if offloaded(config, "offload_optimizer") else 0.0) * trained
    running += (2.0 if offloaded(config, "offload_param") else 0.0) * trained + 4 * trained
    return max(loading, running) + _batches(config)


def checkpoint_disk(config: RunConfig) -> float:
    """Bytes of a stage's checkpoints and its export."""
    trained = trained_parameters(config)
    # fp32 weights and two moments each; one more while it is written.
    return 12 * trained * (config.runner.keep_last + 1) + 4 * sum(parameters(config.model).values())


def offloaded(config: RunConfig, what: str) -> bool:
    """Whether DeepSpeed's `offload_optimizer` or `offload_param` sends something to the host."""
    found: dict[str, Any] = config.engine.get("zero_optimization", {}).get(what) or {}
    return found.get("device", "none") != "none"


def _width(config: RunConfig) -> int:
    """Bytes of a weight on the device."""
    return 2 if config.runner.precision == "bf16" and zero_stage(config.engine) > 0 else 4


def _activations(config: RunConfig, *, longest: int, targets: float) -> float:
    """Bytes kept for the backward of one packed row: inputs of layers, what one or all layers keep inside, logits."""
    text, grpo = config.model.text, config.grpo
    if config.objective.sampled:
        answers = grpo.prompts_per_batch * grpo.num_generations * grpo.max_completion_length
        tokens, heads_out = grpo.prompts_per_batch * longest + answers, float(answers)
    else:
        tokens, heads_out = config.data.token_budget, config.data.token_budget * targets
    width = 2 if config.runner.precision == "bf16" else 4
    heads = (text.num_attention_heads * 2 + text.num_key_value_heads * 2) * text.attention_head_dim
    inside = 4 * text.hidden_size + heads + 4 * text.intermediate_size
    products = 3 * text.hidden_size + heads + 2 * text.intermediate_size
    kept = {
        "none": text.num_hidden_layers * inside,
        "selective": text.num_hidden_layers * products + inside,
        "full": text.num_hidden_layers * text.hidden_size + inside,
    }
    return (
        float(width * tokens * kept[config.model.activation_checkpointing]) + LOGIT_BYTES * heads_out * text.vocab_size
    )


def _key_values(config: RunConfig, *, prompt: int, ranks: int) -> float:
    """Bytes of all prompts of a rank decoded together, each prompt's once and its completions' beside it."""
    text, grpo = config.model.text, config.grpo
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.attention_head_dim * _width(config)
    prompts = -(-grpo.num_prompts // ranks)
    return float(token * prompts * (prompt + grpo.num_generations * grpo.max_completion_length))


def _batches(config: RunConfig) -> float:
    """Pixels of the steps that are prepared ahead, over all ranks of a node."""
    data, side = config.data, config.model.vision.force_image_size
    if config.feature_cache:
        return 0.0
    frames = data.token_budget / max(config.layout.tokens_per_frame, 1)
    ahead = 1 + (data.prefetch_steps if data.workers else 0)
    return ahead * data.packs_per_step * frames * 3 * side**2
