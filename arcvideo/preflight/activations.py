"""Bytes above the weights that forward and backward of one row hold, from sizes alone: what `trace` finds by running.

Every count follows an operator of the model: what autograd keeps for its backward, in the type it is in. Nothing is
fitted; `tests/preflight/test_activations.py` compares with the trace. Letters: w bytes of an activation, D text width,
Q and G widths of queries and keys, F inner width, W tower width, P patches of a frame, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcvideo.composing.config import RunConfig
from arcvideo.model.settings import TextSettings, adapter_targets
from arcvideo.preflight.row import Row

FRAMES_TOGETHER = 64
"""Frames that the vision tower reads at once (`model/towers/media.py`)."""
SEPARATE = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_and_up_proj": ("gate_proj", "up_proj")}
"""Fused layer -> what it is in families that do not fuse."""
LOGITS = 1 << 25
"""Logits that exist at one time (`model/arc_hunyuan/head.py`)."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes at the moments that may be the worst of a step."""

    loss: float
    """At the loss: everything kept of layers and towers, and what the head makes."""
    decoder: float
    """At the last layer's backward: the same, of the head a tied weight's gradient, and that layer computed anew."""
    towers: float
    """At the backward of projectors and towers, when the decoder's are gone."""

    @property
    def peak(self) -> float:
        """At the worst moment."""
        return max(self.loss, self.decoder, self.towers)


@dataclass(frozen=True, kw_only=True)
class _Learning:
    """What of the model learns; weights that do not need no inputs kept."""

    llm: bool
    """The decoder whole."""
    adapters: frozenset[str]
    """Layers of the decoder that have adapters."""
    rank: int
    train: frozenset[str]

    def reads(self, layer: str) -> bool:
        """Return whether the input of a linear layer is kept; families whose layers are separate share one input."""
        return self.llm or bool(self.adapters & {layer, *SEPARATE.get(layer, ())})


def activations(config: RunConfig, *, row: Row) -> Activations:
    """Return what a row of a stage holds above the weights, without gradients of weights, which ZeRO takes as they
    come.
    """
    w = 2 if config.runner.precision == "bf16" else 4
    text, how = config.model.text, config.model.activation_checkpointing
    learning = _learning(config)
    tokens, targets = row.tokens(config), row.targets * row.families
    layer, products = _layer(text, w=w, learning=learning, normed=_own_layers(config)), _products(text, w=w)
    inputs = w * text.hidden_size
    # What one layer's backward needs on top: the gradient of its output, and, inside the gated unit, gradients of both
    # halves and their joined copy, while the gate and, where it was kept, the product are let go.
    halves = 2 if learning.reads("down_proj") else 3
    passing = w * (text.hidden_size + halves * text.intermediate_size)
    kept = text.num_hidden_layers * {"none": layer, "selective": products + inputs, "full": inputs}[how]
    anew = {"none": 0, "selective": layer - products, "full": layer}[how]
    media = row.families * _media(config, frames=row.frames, w=w)
    # A tied head's gradient waits for the embedding's, to which it is added; another's goes as it comes.
    words = w * text.vocab_size * text.hidden_size if learning.llm else 0
    tied = words if text.tie_word_embeddings else 0
    biggest = 2 * w * text.intermediate_size * text.hidden_size if learning.llm else 0
    end = _norm(text.hidden_size, w=w, learns=learning.llm) * tokens + w * text.hidden_size * (tokens + targets)
    return Activations(
        loss=kept * tokens + media + end + words + _head(text, targets=targets, w=w),
        decoder=(kept + anew + passing) * tokens + media + tied + biggest,
        towers=media + words + 2 * tied + _tower_backward(config, frames=row.frames, w=w) + inputs * tokens,
    )


def _head(text: TextSettings, *, targets: int, w: int) -> int:
    """Made by the backward of scoring, its weight's gradient aside: in fp32 a block of words' logits, what the hidden
    states have of gradient so far and what the block adds to it, for which the logits' slopes are rounded.
    """
    block = targets * min(LOGITS // max(targets, text.hidden_size), text.vocab_size)
    states = 4 * targets * text.hidden_size
    return states + max((4 + (w if w < 4 else 0)) * block, w * block + states)


def _learning(config: RunConfig) -> _Learning:
    lora = config.lora
    adapted = lora is not None and "llm" in lora.modules
    train = frozenset(config.stage.train)
    names = [name.rpartition(".")[2] for name in adapter_targets(lora, family=config.model.family)] if lora else []
    return _Learning(
        llm="llm" in train and not adapted,
        adapters=frozenset(names) if adapted else frozenset(),
        rank=lora.rank if lora is not None else 0,
        train=train,
    )


def _norm(width: int, *, w: int, learns: bool) -> int:
    """Kept of an RMS norm, its output aside: the fp32 input, and where its weight learns the normalised one."""
    return (4 + (w if learns else 0)) * width


def _own_layers(config: RunConfig) -> bool:
    """Return whether decoder and merger are ARC's: fused projections, queries and keys normed, convolutions."""
    return "qkv_proj" in config.model.kind.adapter_targets


def _layer(text: TextSettings, *, w: int, learning: _Learning, normed: bool) -> int:
    """Kept of a decoder layer for each token when nothing is computed anew; `normed`: queries and keys are."""
    wide, inner = text.hidden_size, text.intermediate_size
    queries, keys = (heads * text.attention_head_dim for heads in (text.num_attention_heads, text.num_key_value_heads))
    norms = 2 * _norm(wide, w=w, learns=learning.llm)
    inputs = w * wide * (learning.reads("qkv_proj") + learning.reads("gate_and_up_proj"))
    # The fused projection stays whole, because the values are a view of it; queries and keys once more, normalised.
    attention = w * (queries + 2 * keys) + w * (queries + keys)
    attention += sum(_norm(width, w=w, learns=learning.llm) for width in (queries, keys)) if normed else 0
    # The kernel's output, and one fp32 number a query and head.
    attention += w * queries + 4 * text.num_attention_heads
    # Both halves, the gate's activation, and their product.
    unit = w * inner * (3 + learning.reads("down_proj"))
    return norms + inputs + attention + unit + w * learning.rank * len(learning.adapters)


def _products(text: TextSettings, *, w: int) -> int:
    """Of them, outputs of matrix products and attention, which `selective` keeps; with those nobody else reads."""
    queries, keys = (heads * text.attention_head_dim for heads in (text.num_attention_heads, text.num_key_value_heads))
    linear = queries + 2 * keys + text.hidden_size + 2 * text.intermediate_size + text.hidden_size
    return w * (linear + queries) + 4 * text.num_attention_heads


def _media(config: RunConfig, *, frames: int, w: int) -> float:
    """Kept of projectors and of towers that learn, for a clip."""
    if not frames:
        return 0.0
    model, train = config.model, config.stage.train
    vision, audio, wide = model.vision, model.audio, model.text.hidden_size
    groups = config.layout.groups(frames)
    side = vision.force_image_size // vision.patch_size
    patches = side**2
    whole = patches * vision.hidden_size
    kept = 0.0
    if "vit" in train:
        kept += groups * _tower_layers(config, patches=patches, w=w)
        # The normed patches of the merger get a gradient, so its norm keeps its fp32 input.
        kept += groups * whole * (4 if w == 2 else 0)
    if "vision_projector" in train or "vit" in train:
        # Normed patches, the convolutions' inputs and outputs, rows of cells, the last norm; or, of patches that are
        # merged by two matrices, the norm's output twice and both sides of the activation.
        cells = w * (2 * whole + whole // 2 + whole // 2 + whole + whole // 4 + side * vision.hidden_size)
        cells += model.tokens_per_frame * _norm(wide, w=w, learns=True)
        kept += groups * (cells if _own_layers(config) else 4 * w * whole)
    rows = frames * model.rows_per_second
    if "audio_projector" in train or "whisper" in train:
        kept += rows * w * (2 * audio.d_model + 2 * wide)
    if "whisper" in train:
        positions = -(-frames * 50 // audio.max_source_positions) * audio.max_source_positions
        kept += positions * _audio_layers(config, w=w)
    return kept


def _tower_layers(config: RunConfig, *, patches: int, w: int) -> int:
    """Kept of the vision tower's layers for a frame."""
    vision = config.model.vision
    full = config.model.activation_checkpointing == "full"
    inside = _tower_layer(vision.hidden_size, vision.intermediate_size, heads=vision.num_attention_heads, w=w)
    each = w * vision.hidden_size if full else inside
    return patches * vision.num_hidden_layers * each + w * 3 * vision.force_image_size**2


def _audio_layers(config: RunConfig, *, w: int) -> int:
    """Kept of the audio encoder's layers for a position."""
    audio = config.model.audio
    full = config.model.activation_checkpointing == "full"
    inside = _tower_layer(audio.d_model, audio.encoder_ffn_dim, heads=audio.encoder_attention_heads, w=w)
    return audio.encoder_layers * (w * audio.d_model if full else inside)


def _tower_layer(width: int, inner: int, *, heads: int, w: int) -> int:
    """Kept of a tower's layer for a token: inputs and outputs of two norms, q, k and v, their output, both inner."""
    return w * (2 * 2 * width + 3 * width + width + 2 * inner) + 4 * heads


def _tower_backward(config: RunConfig, *, frames: int, w: int) -> float:
    """Made by the backward of merger and towers on top of what was kept."""
    vision, audio = config.model.vision, config.model.audio
    patches, groups = (vision.force_image_size // vision.patch_size) ** 2, config.layout.groups(frames)
    made = 0.0
    if "vit" in config.stage.train:
        inside = _tower_layer(vision.hidden_size, vision.intermediate_size, heads=vision.num_attention_heads, w=w)
        again = inside if config.model.activation_checkpointing == "full" else 0
        passing = w * (vision.hidden_size + 2 * vision.intermediate_size)
        made += min(groups, FRAMES_TOGETHER) * patches * (again + passing)
    if {"vision_projector", "vit"} & set(config.stage.train):
        made += groups * patches * vision.hidden_size * 2 * w
    if "whisper" in config.stage.train:
        positions = -(-frames * 50 // audio.max_source_positions) * audio.max_source_positions
        made += positions * _tower_layer(audio.d_model, audio.encoder_ffn_dim, heads=audio.encoder_attention_heads, w=w)
    return made
