"""The Hugging Face configuration of the model: the JSON face of `ModelSettings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar, TypeVar

from transformers import AutoConfig, PreTrainedConfig

from arcvideo.model.settings import AudioSettings, Corrections, ModelSettings, TextSettings, VisionSettings, check
from arcvideo.model.special import SpecialIds, default_ids

Block = TypeVar("Block", TextSettings, VisionSettings, AudioSettings, Corrections)

ONLY: dict[str, dict[str, Any]] = {
    "text_config": {
        "hidden_act": "silu",
        "use_qk_norm": True,
        "use_rotary_pos_emb": True,
        "position_embedding_xdrope": True,
        "attention_bias": False,
        "mlp_bias": False,
        "is_causal": True,
    },
    "vision_config": {
        "hidden_act": "gelu",
        "use_qk_norm": False,
        "use_rotary_pos_emb": False,
        "attention_bias": True,
        "mlp_bias": True,
        "is_causal": False,
    },
    "audio_config": {"activation_function": "gelu", "scale_embedding": False},
}
"""Options of the released configuration that this model has in one form only: another value is another model."""


class ArcVideoTextConfig(PreTrainedConfig):
    """The decoder's block of `config.json`: sizes under the released names, and the ids of the tokenizer."""

    model_type: ClassVar[str] = "arc_hunyuan_video_text"
    base_config_key: ClassVar[str] = "text_config"
    attribute_map: ClassVar[dict[str, str]] = {"head_dim": "attention_head_dim"}

    vocab_size: int = TextSettings.vocab_size
    hidden_size: int = TextSettings.hidden_size
    intermediate_size: int = TextSettings.intermediate_size
    num_hidden_layers: int = TextSettings.num_hidden_layers
    num_attention_heads: int = TextSettings.num_attention_heads
    num_key_value_heads: int = TextSettings.num_key_value_heads
    attention_head_dim: int = TextSettings.attention_head_dim
    rms_norm_eps: float = TextSettings.rms_norm_eps
    rope_theta: float = TextSettings.rope_theta
    rope_scaling: dict | None = None
    xdrope_section: list | None = None
    initializer_range: float = TextSettings.initializer_range
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = SpecialIds.start
    pad_token_id: int | None = SpecialIds.pad
    eod_token_id: int | None = SpecialIds.end
    eos_token_id: int | list | None = SpecialIds.eos
    image_token_id: int | None = SpecialIds.image

    def __post_init__(self, **kwargs: Any) -> None:
        self.xdrope_section = list(self.xdrope_section or TextSettings().xdrope_section)
        super().__post_init__(**kwargs)


class ArcVideoVisionConfig(PreTrainedConfig):
    """The vision tower's block of `config.json`."""

    model_type: ClassVar[str] = "arc_hunyuan_video_vision"
    base_config_key: ClassVar[str] = "vision_config"

    hidden_size: int = VisionSettings.hidden_size
    intermediate_size: int = VisionSettings.intermediate_size
    num_hidden_layers: int = VisionSettings.num_hidden_layers
    num_attention_heads: int = VisionSettings.num_attention_heads
    rms_norm_eps: float = VisionSettings.rms_norm_eps
    patch_size: int = VisionSettings.patch_size
    num_channels: int = VisionSettings.num_channels
    max_image_size: int = VisionSettings.max_image_size
    force_image_size: int = VisionSettings.force_image_size
    anyres_pooling_size: int = VisionSettings.anyres_pooling_size
    window_size: int = VisionSettings.window_size
    full_attention_layers: list | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.full_attention_layers = list(
            VisionSettings().full_attention_layers if self.full_attention_layers is None else self.full_attention_layers
        )
        super().__post_init__(**kwargs)


class ArcVideoAudioConfig(PreTrainedConfig):
    """The audio tower's block of `config.json`, under Whisper's names."""

    model_type: ClassVar[str] = "arc_hunyuan_video_audio"
    base_config_key: ClassVar[str] = "audio_config"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    }

    d_model: int = AudioSettings.d_model
    encoder_layers: int = AudioSettings.encoder_layers
    encoder_attention_heads: int = AudioSettings.encoder_attention_heads
    encoder_ffn_dim: int = AudioSettings.encoder_ffn_dim
    num_mel_bins: int = AudioSettings.num_mel_bins
    max_source_positions: int = AudioSettings.max_source_positions


class _OfText:
    """A value of the decoder's block, read and set at the top, where other libraries look for it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, owner: type) -> Any:
        return self if config is None else getattr(config.text_config, self.name)

    def __set__(self, config: Any, value: Any) -> None:
        setattr(config.text_config, self.name, value)


class ArcVideoConfig(PreTrainedConfig):
    """Sizes and ids as `config.json` holds them; read `.settings` in code.

    Keys that a file lacks take the released 7B values; keys this model has no use for are kept and ignored.
    """

    model_type: ClassVar[str] = "arc_hunyuan_video"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": ArcVideoTextConfig,
        "vision_config": ArcVideoVisionConfig,
        "audio_config": ArcVideoAudioConfig,
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    family: str = ModelSettings.family
    max_num_frame: int = 150
    audio_pooling: int = 1
    corrections: dict | None = None
    tie_word_embeddings: bool = True

    hidden_size = _OfText("hidden_size")
    vocab_size = _OfText("vocab_size")
    num_hidden_layers = _OfText("num_hidden_layers")
    num_attention_heads = _OfText("num_attention_heads")
    num_key_value_heads = _OfText("num_key_value_heads")
    head_dim = _OfText("attention_head_dim")
    initializer_range = _OfText("initializer_range")
    use_cache = _OfText("use_cache")
    bos_token_id = _OfText("bos_token_id")
    pad_token_id = _OfText("pad_token_id")
    eos_token_id = _OfText("eos_token_id")
    image_token_id = _OfText("image_token_id")

    def __post_init__(self, **kwargs: Any) -> None:
        for block in ("text_config", "vision_config", "audio_config"):
            # A file that calls its blocks by the names of other classes is read as ours.
            if isinstance(given := getattr(self, block), Mapping):
                setattr(self, block, {key: value for key, value in given.items() if key != "model_type"})
        self.corrections = dict(self.corrections or {})
        # A file may repeat at the top what stands in a block.
        super().__post_init__(**{name: value for name, value in kwargs.items() if not _is_of_block(name)})
        text: Any = self.text_config
        text.tie_word_embeddings = self.tie_word_embeddings
        check(self.settings)
        heads = getattr(self.vision_config, "num_key_value_heads", None)
        if heads not in (None, self.settings.vision.num_attention_heads):
            raise ValueError("vision_config.num_key_value_heads must equal num_attention_heads")
        for block, wanted in ONLY.items():
            for key, value in wanted.items():
                if (actual := getattr(getattr(self, block), key, value)) != value:
                    raise ValueError(f"{block}.{key} is {actual!r}, but this model has only {value!r}")

    @classmethod
    def from_settings(
        cls, settings: ModelSettings, *, vocab_size: int | None = None, special: SpecialIds | None = None
    ) -> ArcVideoConfig:
        """Return the configuration of `settings`.

        Args:
            settings: sizes.
            vocab_size: rows of the embedding where the settings leave them open (0).
            special: ids of the tokenizer; the released ones by default.
        """
        text = settings.text
        if text.vocab_size == 0:
            if vocab_size is None:
                raise ValueError("model.text.vocab_size is 0 (take the tokenizer's size) but no tokenizer was given")
            text = replace(text, vocab_size=-(-vocab_size // 64) * 64)
        elif vocab_size is not None and vocab_size > text.vocab_size:
            raise ValueError(
                f"the tokenizer has {vocab_size} ids but model.text.vocab_size is {text.vocab_size}: raise it, or set 0"
            )
        block = asdict(text)
        block["rope_scaling"] = {"type": "dynamic", "alpha": block.pop("rope_alpha")}
        return cls(
            text_config=block | ids_to_config(special or default_ids(settings.family)),
            vision_config=asdict(settings.vision),
            audio_config=asdict(settings.audio),
            tie_word_embeddings=text.tie_word_embeddings,
            family=settings.family,
            max_num_frame=settings.max_num_frame,
            audio_pooling=settings.audio_pooling,
            corrections=asdict(settings.corrections),
        )

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: the model's `save_pretrained` writes the code."""

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what differs from an empty configuration, and every size and id: a file is read alone."""
        written = super().to_diff_dict()
        for name in self.sub_configs:
            block = getattr(self, name)
            declared = {key: vars(block)[key] for key in type(block).__annotations__ if key in vars(block)}
            written[name] = block.to_diff_dict() | declared
        return written

    @property
    def settings(self) -> ModelSettings:
        """The sizes as code reads them."""
        text = _values(self.text_config)
        scaling = text.get("rope_scaling")
        if isinstance(scaling, Mapping) and "alpha" in scaling:
            text["rope_alpha"] = float(scaling["alpha"])
        return ModelSettings(
            text=_block(TextSettings, text),
            vision=_block(VisionSettings, _values(self.vision_config)),
            audio=_block(AudioSettings, _values(self.audio_config)),
            family=self.family,
            max_num_frame=self.max_num_frame,
            audio_pooling=self.audio_pooling,
            corrections=_block(Corrections, self.corrections or {}),
        )

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer: end of document and eos."""
        text: Any = self.text_config
        eos = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
        return list(dict.fromkeys(int(token) for token in (text.eod_token_id, *eos) if token is not None))


def _is_of_block(name: str) -> bool:
    return isinstance(vars(ArcVideoConfig).get(name), (_OfText, property))


def _values(block: Any) -> dict[str, Any]:
    """Return the attributes of a block as a new dict."""
    return dict(vars(block))


def ids_to_config(special: SpecialIds) -> dict[str, int]:
    """Return the ids under the names of the released configuration."""
    return {
        "bos_token_id": special.start,
        "pad_token_id": special.pad,
        "eod_token_id": special.end,
        "eos_token_id": special.eos,
        "im_start_id": special.img_open,
        "im_end_id": special.img_close,
        "im_newline_id": special.newline,
        "image_token_id": special.image,
    }


def _block(kind: type[Block], values: Mapping[str, Any]) -> Block:
    """Return `kind` filled from the keys it knows; others belong to options this model does not have."""
    known = {item.name: values[item.name] for item in fields(kind) if item.name in values}
    return kind(**known)


AutoConfig.register(ArcVideoConfig.model_type, ArcVideoConfig)
