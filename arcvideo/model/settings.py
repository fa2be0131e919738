"""Sizes of the model (torch-free). The defaults are the released 7B; `conf/model/*.yaml` fills them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from arcvideo.layout import MediaLayout
from arcvideo.model.families.family import Family
from arcvideo.model.families.table import FAMILIES
from arcvideo.structured import nearest

ATTENTIONS = ("sdpa", "flex_attention", "auto", "eager")
COMPILES = ("none", "elementwise")
RECOMPUTES = ("none", "selective", "full")
COMPUTING = ("activation_checkpointing", "attention", "compile", "corrections")
"""Fields of `ModelSettings` that say how a model computes; a stage's settings decide them, the weights have no say."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The dense decoder."""

    vocab_size: int = 128256
    """Rows of the embedding; 0 takes the tokenizer's size, rounded up to a multiple of 64."""
    hidden_size: int = 4096
    """Width."""
    intermediate_size: int = 14336
    """Width of the MLP."""
    num_hidden_layers: int = 32
    """Layers."""
    num_attention_heads: int = 32
    """Query heads."""
    num_key_value_heads: int = 8
    """Key and value heads."""
    attention_head_dim: int = 128
    """Width of a head; need not be hidden_size / num_attention_heads."""
    rms_norm_eps: float = 1e-5
    """Epsilon of all RMS norms of the decoder."""
    rope_theta: float = 10000.0
    """Rope base before NTK scaling."""
    rope_alpha: float = 1000.0
    """NTK factor: base = theta * alpha^(d / (d - 2)), at every length; 1 for none."""
    xdrope_section: list[float] = field(default_factory=lambda: [0.25, 0.25, 0.25, 0.25])
    """Shares of the frequencies that read index, column, row and frame."""
    initializer_range: float = 0.02
    """Standard deviation of fresh embeddings; fresh media tokens get the same RMS."""
    tie_word_embeddings: bool = True
    """Whether the head is the embedding; arc_qwen alone has heads of their own, at 7B."""


@dataclass(frozen=True, kw_only=True)
class VisionSettings:
    """The vision transformer and its merger."""

    hidden_size: int = 1152
    """Width."""
    intermediate_size: int = 4304
    """Width of the MLP."""
    num_hidden_layers: int = 27
    """Layers."""
    num_attention_heads: int = 16
    """Heads."""
    rms_norm_eps: float = 1e-5
    """Epsilon of the layer norms and of the merger's RMS norms."""
    patch_size: int = 16
    """Side of a patch, pixels."""
    num_channels: int = 3
    """Colour channels."""
    max_image_size: int = 2048
    """Side the position table was made for, pixels."""
    force_image_size: int = 640
    """Side of every frame, pixels; a multiple of a cell's, 64 as released and 28 in arc_qwen."""
    anyres_pooling_size: int = 2
    """Side of the square of cells that is averaged into one, 1 for none; always 1 in arc_qwen."""
    window_size: int = 112
    """Side in pixels of the windows in which most layers look; arc_qwen only."""
    full_attention_layers: list[int] = field(default_factory=lambda: [7, 15, 23, 31])
    """Layers that look at the whole picture; arc_qwen only."""


@dataclass(frozen=True, kw_only=True)
class AudioSettings:
    """The Whisper encoder."""

    d_model: int = 1280
    """Width."""
    encoder_layers: int = 32
    """Layers."""
    encoder_attention_heads: int = 20
    """Heads."""
    encoder_ffn_dim: int = 5120
    """Width of the MLP."""
    num_mel_bins: int = 128
    """Mel bins."""
    max_source_positions: int = 1500
    """Rows a chunk gives, 50 a second: 1500 is 30 s."""


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """The right rule where the released code is wrong; off is the released one (docs/reference_differences.md)."""

    exact_alignment: bool = False
    """Clips above max_num_frame seconds: each frame hears its own span instead of one that runs ahead of it."""
    merger_gradient: bool = False
    """The merger learns from the start; `stage.train` decides in a stage."""
    separate_documents: bool = False
    """A batch row with several turns: tokens behind an end-of-document id do not see what stands before it."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """One model; `tiny` and `arc_hunyuan_7b` differ by these numbers only."""

    family: str = "arc_hunyuan"
    """What kind of model: arc_hunyuan, arc_hunyuan_1b (HunyuanOCR's towers and decoder) or arc_qwen (Qwen2.5-VL's)."""
    text: TextSettings = field(default_factory=TextSettings)
    """The decoder."""
    vision: VisionSettings = field(default_factory=VisionSettings)
    """The vision tower."""
    audio: AudioSettings = field(default_factory=AudioSettings)
    """The audio tower."""
    max_num_frame: int = 150
    """Longer audio is spread over this many frames (fusion rule)."""
    audio_pooling: int = 1
    """Encoder rows averaged into one before the projector; 1 is the released model."""
    activation_checkpointing: str = "none"
    """What the backward pass recomputes of the decoder and of towers that learn: none, selective (norms, rope and
    activations; outputs of matrix products and attention are kept, so it costs hardly any time) or full (whole layers;
    least memory)."""
    attention: str = "auto"
    """Attention of the decoder: auto (the best kernel for each row; on CUDA flash for documents and flex_attention for
    branches that share a prefix, sdpa on the CPU), or one of sdpa, flex_attention and eager for all rows."""
    compile: str = "none"
    """What torch.compile fuses of the decoder: none, or elementwise (each norm, rope with its norm and the gated unit
    become one kernel; needs a C++ compiler, rounds less and so gives other bits). Unmeasured on a GPU."""
    corrections: Corrections = field(default_factory=Corrections)
    """Departures from the released code."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def kind(self) -> Family:
        """What the family says."""
        return FAMILIES[self.family]

    @property
    def cell(self) -> int:
        """Side in pixels of the square that becomes one token."""
        return self.vision.patch_size * self.kind.merged * self.vision.anyres_pooling_size

    @property
    def grid(self) -> int:
        """Cells on a side of a frame."""
        return self.vision.force_image_size // self.cell

    @property
    def tokens_per_group(self) -> int:
        """Fused tokens of a group of frames: rows of cells, each with its end where there is one, begin and end."""
        return self.grid * (self.grid + self.kind.row_ends) + self.kind.edges

    @property
    def tokens_per_frame(self) -> int:
        """Fused tokens of a frame; of a group's, each frame's share, rounded up."""
        return -(-self.tokens_per_group // self.kind.frames_per_group)

    def groups(self, frames: int) -> int:
        """Return how many groups so many frames are."""
        return -(-frames // self.kind.frames_per_group)

    def placeholders(self, frames: int) -> int:
        """Return how many fused tokens so many frames give."""
        return self.groups(frames) * self.tokens_per_group

    @property
    def layout(self) -> MediaLayout:
        """The shapes that decoding, rendering and the towers share."""
        kind = self.kind
        return MediaLayout(
            cell=self.cell,
            row_ends=kind.row_ends,
            edges=kind.edges,
            marks=kind.marks,
            frames_per_group=kind.frames_per_group,
            middle_sound=kind.middle_sound,
            image_size=self.vision.force_image_size,
            mel_bins=self.audio.num_mel_bins,
            audio_positions=self.audio.max_source_positions,
            audio_pooling=self.audio_pooling,
            max_frames=self.max_num_frame,
        )

    @property
    def rows_per_second(self) -> int:
        """Projected audio rows of a second."""
        return 50 // self.audio_pooling


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Train low-rank adapters instead of whole matrices; the export has them merged, the adapter is kept beside it."""

    rank: int = 16
    """Inner width of an adapter."""
    alpha: float = 32.0
    """An adapter's output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are dropped in training; 0 where completions are sampled (grpo)."""
    targets: list[str] = field(default_factory=list)
    """Last parts of the names of the linear layers that get one; all those of the family's decoder when empty."""
    modules: list[str] = field(default_factory=lambda: ["llm"])
    """Which modules of stage.train train through adapters; the others of stage.train train whole."""


TOWER_LAYERS = {
    "vision_projector": ("mlp",),
    "audio_projector": ("1", "3"),
    "vit": ("qkv_proj", "o_proj", "dense_h_to_4h", "dense_4h_to_h"),
    "whisper": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
"""Module beside the decoder -> last parts of the names of its linear layers."""


def adapter_targets(lora: LoraSettings, *, family: str) -> list[str]:
    """Return the last parts of the names of the layers that get adapters."""
    return list(lora.targets or FAMILIES[family].adapter_targets)


def _target_problems(lora: LoraSettings, *, family: str) -> list[str]:
    """Return what is wrong with `lora.targets`, as far as names alone tell; none means all of the decoder's."""
    if family not in FAMILIES:
        return []
    every = TOWER_LAYERS | {"llm": FAMILIES[family].adapter_targets}
    layers = {module: every[module] for module in lora.modules if module in every}
    layer_names = sorted({name for names in layers.values() for name in names})
    last = {target.rpartition(".")[2]: target for target in adapter_targets(lora, family=family)}
    problems = [
        f"lora.targets has {target!r}, which is no linear layer of {', '.join(layers)} with model.family={family}"
        f"{nearest(name, layer_names)}; there are {', '.join(layer_names)}"
        for name, target in last.items()
        if layers and name not in layer_names
    ]
    problems += [
        f"lora.targets names no linear layer of {module}, which lora.modules adapts: {', '.join(names)}"
        for module, names in layers.items()
        if not problems and not set(names) & set(last)
    ]
    return problems


def lora_problems(
    lora: LoraSettings | None, *, train: Collection[str], objective: str, answers: bool, family: str = "arc_hunyuan"
) -> list[str]:
    """Return what is wrong with the settings of adapters, one sentence each, naming key and remedy.

    Args:
        lora: None trains whole modules.
        train: stage.train.
        objective: of the stage.
        answers: whether it trains on the data's own answers, and nothing else reads the model.
        family: of the model.
    """
    if lora is None:
        return []
    problems = []
    if lora.rank < 1:
        problems.append(f"lora.rank={lora.rank} must be at least 1; lora=null trains whole modules")
    if not lora.alpha > 0:
        problems.append(f"lora.alpha={lora.alpha} must be above 0")
    if not 0 <= lora.dropout < 1:
        problems.append(f"lora.dropout={lora.dropout} must be at least 0 and below 1")
    if lora.dropout and not answers:
        problems.append(f"lora.dropout={lora.dropout} must be 0 with stage.objective={objective}: what is sampled must "
                        "be what is trained")  # fmt: skip
    if not lora.modules:
        problems.append("lora.modules must name something; lora=null trains whole modules")
    for name in lora.modules:
        if name not in train:
            problems.append(f"lora.modules has {name!r}, which stage.train={list(train)} does not train: add it there")
    return problems + _target_problems(lora, family=family)


def check(settings: ModelSettings) -> None:
    """Raise ValueError, naming the key, when sizes do not fit each other."""
    text, vision, audio = settings.text, settings.vision, settings.audio
    half = text.attention_head_dim // 2
    bands = [int(share * half) for share in text.xdrope_section]
    if settings.family not in FAMILIES:
        raise ValueError(f"model.family={settings.family!r}: choose one of {', '.join(FAMILIES)}")
    if vision.anyres_pooling_size < 1 or (settings.kind.frames_per_group > 1 and vision.anyres_pooling_size > 1):
        raise ValueError(
            f"model.vision.anyres_pooling_size={vision.anyres_pooling_size} must be at least 1, and 1 in arc_qwen"
        )
    if not text.tie_word_embeddings and settings.kind.marks:
        raise ValueError(f"tie_word_embeddings is False, but the head of {settings.family} is its embedding")
    rules = {
        "model.text.num_attention_heads must be a multiple of model.text.num_key_value_heads": (
            text.num_attention_heads % text.num_key_value_heads == 0
        ),
        f"model.activation_checkpointing must be one of {', '.join(RECOMPUTES)}": (
            settings.activation_checkpointing in RECOMPUTES
        ),
        "model.text.attention_head_dim must be even": text.attention_head_dim % 2 == 0,
        "model.text.xdrope_section must be four shares that use up every frequency of a head, like [0.25] * 4 with "
        "model.text.attention_head_dim a multiple of 8": len(bands) == 4 and sum(bands) == half,
        "model.text.vocab_size must not be negative": text.vocab_size >= 0,
        "model.vision.num_attention_heads must divide model.vision.hidden_size": (
            vision.hidden_size % vision.num_attention_heads == 0
        ),
        f"model.vision.force_image_size must be a positive multiple of {settings.cell}, the side of a cell": (
            vision.force_image_size > 0 and vision.force_image_size % settings.cell == 0
        ),
        "model.vision.max_image_size must be a multiple of model.vision.patch_size": (
            vision.max_image_size >= vision.patch_size and vision.max_image_size % vision.patch_size == 0
        ),
        "model.audio.encoder_attention_heads must divide model.audio.d_model": (
            audio.d_model % audio.encoder_attention_heads == 0
        ),
        "model.audio.d_model must be even and at least 4 (sinusoidal positions)": (
            audio.d_model % 2 == 0 and audio.d_model >= 4
        ),
        "model.audio_pooling must divide 50 and model.audio.max_source_positions": (
            settings.audio_pooling >= 1
            and 50 % settings.audio_pooling == 0
            and audio.max_source_positions % settings.audio_pooling == 0
        ),
        "model.max_num_frame must be at least 1": settings.max_num_frame >= 1,
        f"model.attention must be one of {', '.join(ATTENTIONS)}": settings.attention in ATTENTIONS,
        f"model.compile must be one of {', '.join(COMPILES)}": settings.compile in COMPILES,
        "model.compile must be none with model.family=arc_qwen, whose layers are transformers' own": (
            settings.compile == "none" or settings.family != "arc_qwen"
        ),
    }
    for message, holds in rules.items():
        if not holds:
            raise ValueError(message)
    if settings.rows_per_second * settings.kind.frames_per_group > settings.tokens_per_group:
        raise ValueError(
            f"a frame of model.vision.force_image_size={vision.force_image_size} has {settings.tokens_per_frame} "
            f"tokens and cannot take {settings.rows_per_second} audio rows a second: "
            "raise model.audio_pooling or the image side"
        )
