"""What transformers' `generate` needs to know of this model: positions, media and where an answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.settings import ModelSettings
from arcvideo.types import Media

MEDIA_INPUTS = ("media", "pixel_values", "mels", "duration", "features")
"""Read with the prompt; later tokens are text."""


class ArcVideoGenerationMixin(GenerationMixin):
    """Media enter with the prompt; new tokens take the running index on all axes."""

    config: ArcVideoConfig
    settings: ModelSettings

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return what `forward` takes for the next step."""
        cache = kwargs.get("past_key_values")
        # Stop strings bring their tokenizer along, which transformers hands on to the model.
        kwargs.pop("tokenizer", None)
        prepare: Any = super().prepare_inputs_for_generation
        inputs = prepare(input_ids, **kwargs)
        if cache is not None and cache.get_seq_length() > 0:
            for name in MEDIA_INPUTS:
                inputs.pop(name, None)
        return inputs

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        """Return the mask (B, L) as it is: with a cache of fixed size `attend` knows from the lengths who sees whom."""
        return attention_mask

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        """Return (B, 4, L): the running index on every axis. Prompts with media bring their own positions."""
        given = model_kwargs.get("media") or model_kwargs.get("pixel_values") is not None
        if given:
            raise ValueError("prompts with media need position_ids (B, 4, L): the processor makes them")
        index = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        return index.expand(inputs_tensor.shape[0], -1).unsqueeze(1).repeat(1, 4, 1)

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat every row `expand_size` times, its clips with it."""
        if expand_size == 1:
            return input_ids, kwargs
        assert input_ids is not None
        media = kwargs.get("media")
        if media:
            parts = clips_of_rows(media, input_ids, image=self.config.image_token_id, settings=self.settings)
            kwargs["media"] = tuple(clip for part in parts for _ in range(expand_size) for clip in part)
        if kwargs.get("pixel_values") is not None:
            raise ValueError("several sequences for one prompt need `media` in place of pixel_values and mels")
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                kwargs[name] = value.repeat_interleave(expand_size, dim=0)
        return input_ids.repeat_interleave(expand_size, dim=0), kwargs


def clips_of_rows(
    media: Sequence[Media], input_ids: Tensor, *, image: int, settings: ModelSettings
) -> list[tuple[Media, ...]]:
    """Return the clips of each row (B, L), told apart by the number of image tokens.

    Raises:
        ValueError: rows whose image tokens no run of clips fills.
    """
    wanted = (input_ids == image).sum(dim=1).tolist()
    rows: list[tuple[Media, ...]] = []
    clips = list(media)
    for row, count in enumerate(wanted):
        taken: list[Media] = []
        while clips and count > 0:
            count -= settings.placeholders(clips[0].frame_count)
            taken.append(clips.pop(0))
        if count:
            raise ValueError(f"row {row} of input_ids holds {wanted[row]} image tokens, which its clips do not fill")
        rows.append(tuple(taken))
    return rows


def generation_config(config: ArcVideoConfig) -> GenerationConfig:
    """Return the released way to answer: greedy, ended by either stop id."""
    return GenerationConfig(eos_token_id=config.stop_token_ids, pad_token_id=config.pad_token_id, do_sample=False)
