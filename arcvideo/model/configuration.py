"""The Hugging Face configuration of the model: the JSON face of `ModelSettings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar, TypeVar

from transformers import AutoConfig, PreTrainedConfig

from arcvideo.model.settings import AudioSettings, Corrections, ModelSettings, TextSettings, VisionSettings, check
from arcvideo.model.special import SpecialIds

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
        "anyres_pooling_size": 2,
    },
    "audio_config": {"activation_function": "gelu", "scale_embedding": False},
}
"""Options of the released configuration that this model has in one form only: another value is another model."""


class ArcVideoConfig(PreTrainedConfig):
    """Sizes and ids as `config.json` holds them; read `.settings` in code.

    Keys that a file lacks take the released 7B values; keys this model has no use for are kept and ignored.
    """

    model_type: ClassVar[str] = "arc_hunyuan_video"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    text_config: dict | None = None
    vision_config: dict | None = None
    audio_config: dict | None = None
    max_num_frame: int = 150
    audio_pooling: int = 1
    corrections: dict | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = dict(self.text_config or {})
        self.vision_config = dict(self.vision_config or {})
        self.audio_config = dict(self.audio_config or {})
        self.corrections = dict(self.corrections or {})
        # A file may repeat at the top what stands in a block.
        super().__post_init__(**{name: value for name, value in kwargs.items() if not _is_property(name)})
        check(self.settings)
        vision = self.vision_config
        if vision.get("num_key_value_heads", None) not in (None, self.settings.vision.num_attention_heads):
            raise ValueError("vision_config.num_key_value_heads must equal num_attention_heads")
        for block, wanted in ONLY.items():
            for key, value in wanted.items():
                if (found := getattr(self, block).get(key, value)) != value:
                    raise ValueError(f"{block}.{key} is {found!r}, but this model has only {value!r}")

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
            text_config=block | _ids_to_config(special or SpecialIds()),
            vision_config=asdict(settings.vision),
            audio_config=asdict(settings.audio),
            max_num_frame=settings.max_num_frame,
            audio_pooling=settings.audio_pooling,
            corrections=asdict(settings.corrections),
        )

    @property
    def settings(self) -> ModelSettings:
        """The sizes as code reads them."""
        text = dict(self.text_config or {})
        scaling = text.get("rope_scaling")
        if isinstance(scaling, Mapping) and "alpha" in scaling:
            text["rope_alpha"] = float(scaling["alpha"])
        return ModelSettings(
            text=_block(TextSettings, text),
            vision=_block(VisionSettings, self.vision_config or {}),
            audio=_block(AudioSettings, self.audio_config or {}),
            max_num_frame=self.max_num_frame,
            audio_pooling=self.audio_pooling,
            corrections=_block(Corrections, self.corrections or {}),
        )

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer: end of document and eos."""
        text = self.text_config or {}
        eos = text.get("eos_token_id", SpecialIds().eos)
        ends = [text.get("eod_token_id", SpecialIds().end), *(eos if isinstance(eos, list) else [eos])]
        return list(dict.fromkeys(int(token) for token in ends))

    @property
    def pad_token_id(self) -> int:
        """Id of padding."""
        return int((self.text_config or {}).get("pad_token_id", SpecialIds().pad))

    @pad_token_id.setter
    def pad_token_id(self, value: int | None) -> None:
        # Trainers copy their tokenizer's id here.
        if value is not None and value != self.pad_token_id:
            self.text_config = {**(self.text_config or {}), "pad_token_id": int(value)}

    @property
    def image_token_id(self) -> int:
        """Id of the tokens that fused media replace."""
        return int((self.text_config or {}).get("image_token_id", SpecialIds().image))

    @property
    def hidden_size(self) -> int:
        """Width of the decoder, where other libraries look for it."""
        return self.settings.text.hidden_size

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, where other libraries look for them."""
        return self.settings.text.vocab_size

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers, where caches look for them."""
        return self.settings.text.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        """Query heads, where other libraries look for them."""
        return self.settings.text.num_attention_heads

    @property
    def num_key_value_heads(self) -> int:
        """Key heads, where static caches look for them."""
        return self.settings.text.num_key_value_heads

    @property
    def head_dim(self) -> int:
        """Width of a head, where static caches look for it."""
        return self.settings.text.attention_head_dim

    def get_text_config(self, *args: Any, **kwargs: Any) -> ArcVideoConfig:  # type: ignore[override]
        """Return itself: the blocks are plain dicts."""
        return self


def _is_property(name: str) -> bool:
    return isinstance(vars(ArcVideoConfig).get(name), property)


def _ids_to_config(special: SpecialIds) -> dict[str, int]:
    """Return the ids under the names of the released configuration."""
    return {
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
