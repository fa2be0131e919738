"""The Hugging Face configuration of the model: the JSON face of `ModelSettings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar, TypeVar

from transformers import PreTrainedConfig

from arcvideo.model.settings import AudioSettings, ModelSettings, TextSettings, VisionSettings, check
from arcvideo.model.special import SpecialIds

Block = TypeVar("Block", TextSettings, VisionSettings, AudioSettings)


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
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = dict(self.text_config or {})
        self.vision_config = dict(self.vision_config or {})
        self.audio_config = dict(self.audio_config or {})
        super().__post_init__(**kwargs)
        check(self.settings)

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
        )

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

    def get_text_config(self, *args: Any, **kwargs: Any) -> ArcVideoConfig:  # type: ignore[override]
        """Return itself: the blocks are plain dicts."""
        return self


def _ids_to_config(special: SpecialIds) -> dict[str, int]:
    """Return the ids under the names of the released configuration."""
    return {
        "pad_token_id": special.pad,
        "eod_token_id": special.end,
        "im_start_id": special.img_open,
        "im_end_id": special.img_close,
        "im_newline_id": special.newline,
        "image_token_id": special.image,
    }


def _block(kind: type[Block], values: Mapping[str, Any]) -> Block:
    """Return `kind` filled from the keys it knows; others belong to options this model does not have."""
    known = {item.name: values[item.name] for item in fields(kind) if item.name in values}
    return kind(**known)
