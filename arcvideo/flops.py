"""What a packed row costs, in floating-point operations: for MFU and for estimates before a run. No torch.

Counted are multiplications and additions of matrix products, two per weight and token, as
`torch.utils.flop_counter` counts them, with causal attention at the pairs it needs (half a square). Norms, rope,
softmax and the optimizer are not counted. Letters: N tokens, L layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

from arcvideo.model.settings import AudioSettings, ModelSettings, TextSettings, VisionSettings

PEAK_BF16 = {
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "B200": 2250e12,
    "L4": 121e12,
    "A10": 125e12,
    "A40": 149.7e12,
    "A6000": 154.8e12,
    "RTX3090": 71e12,
    "RTX4090": 165.2e12,
    "RTX5090": 209.5e12,
}
"""Dense bf16 peak per second of one device, by the name it gives itself (vendor data sheets; of GeForce, sums in fp32,
which is half of what is printed largest)."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a packed row, as far as its cost goes."""

    length: int
    """Tokens."""
    prefix: int = 0
    """Tokens of the parent that it also sees."""

    @property
    def pairs(self) -> int:
        """Query-key pairs: causal inside, everything of the parent."""
        return self.length * (self.length + 1) // 2 + self.length * self.prefix


@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """One forward, by part; add several with `+`."""

    decoder: float = 0.0
    """Linear layers of the decoder."""
    attention: float = 0.0
    """Attention of the decoder."""
    head: float = 0.0
    """Output head, at the target positions only."""
    vit: float = 0.0
    """Vision transformer; nothing for cached frames."""
    vision_projector: float = 0.0
    """Convolutional merger behind it."""
    whisper: float = 0.0
    """Audio encoder; nothing for cached chunks."""
    audio_projector: float = 0.0
    """MLP behind it."""

    def __add__(self, other: ForwardFlops) -> ForwardFlops:
        return ForwardFlops(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )

    @property
    def total(self) -> float:
        """All parts."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    def training(self, trained: Collection[str]) -> float:
        """Return useful work of forward and backward: what MFU divides by time and peak; recomputation is not in it.

        Args:
            trained: module names of the settings (llm, vision_projector, audio_projector, vit, whisper). Through a
                frozen decoder the gradient still flows to what trains before it, so its weights cost one backward
                product instead of two; the same holds for what trains through adapters (`llm.lora`), whose own
                products are not counted. A frozen tower or projector costs its forward only, unless something before
                it trains.
        """
        decoder_backward = 2.0 if "llm" in trained else 1.0
        work = (self.decoder + self.head) * (1.0 + decoder_backward) + 3.0 * self.attention
        for tower, projector in (("vit", "vision_projector"), ("whisper", "audio_projector")):
            adapted = f"{tower}.lora" in trained
            work += getattr(self, tower) * (3.0 if tower in trained else 2.0 if adapted else 1.0)
            before = adapted or tower in trained or f"{projector}.lora" in trained
            backward = 2.0 if projector in trained else 1.0 if before else 0.0
            work += getattr(self, projector) * (1.0 + backward)
        return work


def decoder_weights(text: TextSettings) -> int:
    """Return weights of the decoder's linear layers, P_lin; norms and the embedding are not among them."""
    heads = text.num_attention_heads + 2 * text.num_key_value_heads
    attention = text.hidden_size * text.attention_head_dim * (heads + text.num_attention_heads)
    return text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)


def head_weights(text: TextSettings) -> int:
    """Return weights of the output head, P_head, tied to the embedding."""
    return text.vocab_size * text.hidden_size


def decoder_flops(text: TextSettings, segments: Sequence[Segment], *, targets: int) -> ForwardFlops:
    """Forward of the decoder over a packed row; `targets` positions reach the head.

    For one segment this is 2 P_lin N + 2 d L N (N + 1) + 2 P_head targets with d the joint width of the heads.
    """
    tokens = sum(segment.length for segment in segments)
    pairs = sum(segment.pairs for segment in segments)
    width = text.num_attention_heads * text.attention_head_dim
    return ForwardFlops(
        decoder=2.0 * decoder_weights(text) * tokens,
        attention=4.0 * width * text.num_hidden_layers * pairs,
        head=2.0 * head_weights(text) * targets,
    )


def vit_flops(vision: VisionSettings, *, matrices: int = 2) -> float:
    """Vision transformer on one frame (or group); layers that look in windows count as if they saw everything.

    Args:
        vision: sizes.
        matrices: of an MLP.
    """
    width, patches = vision.hidden_size, (vision.force_image_size // vision.patch_size) ** 2
    layer = 2.0 * patches * (4 * width**2 + matrices * width * vision.intermediate_size) + 4.0 * patches**2 * width
    embedding = 2.0 * patches * vision.num_channels * vision.patch_size**2 * width
    return embedding + vision.num_hidden_layers * layer


def merger_flops(settings: ModelSettings) -> float:
    """Merger on one frame (or group): 2 x 2 convolution, 1 x 1 convolution, linear layer with the newlines; or two
    linear layers over the patches of a cell."""
    width, grid = settings.vision.hidden_size, settings.grid
    if not settings.kind.row_ends:
        return 2.0 * grid**2 * 4 * width * (4 * width + settings.text.hidden_size)
    cells = (settings.vision.anyres_pooling_size * grid) ** 2
    convolutions = 2.0 * cells * (4 * width * 2 * width + 2 * width * 4 * width)
    return convolutions + 2.0 * grid * (grid + 1) * 4 * width * settings.text.hidden_size


def whisper_flops(audio: AudioSettings) -> float:
    """Audio encoder on one chunk."""
    width, rows = audio.d_model, audio.max_source_positions
    layer = 2.0 * rows * (4 * width**2 + 2 * width * audio.encoder_ffn_dim) + 4.0 * rows**2 * width
    convolutions = 2.0 * 3 * (2 * rows * audio.num_mel_bins * width + rows * width**2)
    return convolutions + audio.encoder_layers * layer


def media_flops(
    settings: ModelSettings,
    *,
    frames: int,
    seconds: int,
    chunks: int,
    seen: int | None = None,
    heard: int | None = None,
) -> ForwardFlops:
    """Forward of towers and projectors for the clips of a row.

    Args:
        settings: sizes.
        frames: frames that become tokens.
        seconds: seconds of audio that count; only their rows are projected.
        chunks: chunks of audio.
        seen: frames that the vision tower really reads; without it all (no feature cache).
        heard: chunks that the audio tower really reads, likewise.
    """
    width, text = settings.audio.d_model, settings.text.hidden_size
    return ForwardFlops(
        vit=vit_flops(settings.vision, matrices=3 if settings.kind.gated_vision else 2)
        * settings.groups(frames if seen is None else seen),
        vision_projector=merger_flops(settings) * settings.groups(frames),
        whisper=whisper_flops(settings.audio) * (chunks if heard is None else heard),
        audio_projector=2.0 * seconds * settings.rows_per_second * text * (width + text),
    )


def peak_flops(device: str) -> float | None:
    """Return dense bf16 peak per second of a device by its name (`NVIDIA A100-SXM4-80GB`, ...); None when unknown."""
    words = re.sub(r"\bRTX (?=\d)", "RTX", device.upper().replace("-", " ")).split()
    return next((peak for name, peak in PEAK_BF16.items() if name in words), None)
