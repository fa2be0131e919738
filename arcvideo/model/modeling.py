"""`ArcVideoForConditionalGeneration`: towers, projectors, fusion and decoder in one transformers model.

Shapes: B batch, L tokens, T targets, F frames, S image side, P patches, C mel chunks, M mel bins, W tower width,
n tokens of a frame, D text width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache, PreTrainedModel

from arcvideo.model.attention import Plan, batch_plan, document_segments, packed_plan
from arcvideo.model.audio import AudioEncoder, audio_projector, pool_rows
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.features import FeatureStore
from arcvideo.model.fusion import audio_for_frames
from arcvideo.model.generation import ArcVideoGenerationMixin, generation_config
from arcvideo.model.initialization import initialize
from arcvideo.model.language import LanguageModel
from arcvideo.model.media import Towers, tower_outputs
from arcvideo.model.output import ArcVideoOutput, cross_entropy
from arcvideo.model.settings import ModelSettings
from arcvideo.model.vision import VisionModel
from arcvideo.model.weights import check_fit
from arcvideo.types import Media, Segments


class ArcVideoForConditionalGeneration(ArcVideoGenerationMixin, PreTrainedModel):
    """ARC-Hunyuan-Video; tiny and 7B differ by configuration only. Parameter names are the released key names.

    As in the released code the vision model and the speech encoder start frozen; the language model and the audio
    projector learn. `requires_grad_` on their parameters, as `stage.train` sets it, lets the others learn too.
    """

    config_class = ArcVideoConfig
    main_input_name = "input_ids"
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"
    }
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"position_ids$"]
    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer", "VisionLayer", "AudioLayer"]

    def __init__(self, config: ArcVideoConfig) -> None:
        super().__init__(config)
        settings = config.settings
        width = settings.text.hidden_size
        self.settings = settings
        self.vision_model = VisionModel(settings.vision, text_width=width)
        self.speech_encoder = AudioEncoder(settings.audio)
        self.mlp2 = audio_projector(settings.audio.d_model, text_width=width)
        self.language_model = LanguageModel(settings.text)
        self.post_init()
        self.generation_config = generation_config(config)
        self.vision_model.requires_grad_(False)
        self.speech_encoder.requires_grad_(False)
        self.vision_model.perceive.requires_grad_(settings.corrections.merger_gradient)

    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, settings=self.settings)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # As "custom code", modules without parameters of their own would be skipped, but here they overrule children.
        super()._initialize_weights(module, is_custom_code=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return what transformers loads, provided that every key found its place.

        A directory without config.json has the released sizes. A stored head may be absent; one that is there must
        equal the embedding, to which it is tied.

        Raises:
            ValueError: naming keys that are missing, unexpected or misshapen.
        """
        directory = Path(str(pretrained_model_name_or_path)) / kwargs.get("subfolder", "")
        if directory.is_dir():
            if "config" not in kwargs and not (directory / "config.json").exists():
                kwargs["config"] = ArcVideoConfig()
            config = kwargs.get("config") or ArcVideoConfig.from_pretrained(directory, local_files_only=True)
            with torch.device("meta"):
                check_fit(directory, state=cls(config).state_dict())
        model = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        loaded = model[0] if isinstance(model, tuple) else model
        # A generation_config.json may name one of them only.
        listed = loaded.generation_config.eos_token_id
        known = listed if isinstance(listed, list) else [] if listed is None else [listed]
        loaded.generation_config.eos_token_id = list(dict.fromkeys([*known, *loaded.config.stop_token_ids]))
        return model

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.model.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.language_model.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    def adopt(self, settings: ModelSettings) -> None:
        """Take over what settings say about computing: checkpointing, attention, corrections; sizes stay.

        Which parts learn is left alone: that is `requires_grad_`'s, and in a stage `stage.train`'s, to say.
        """
        self.activation_checkpointing = settings.activation_checkpointing
        self.set_attn_implementation(settings.attention)
        self.config.corrections = asdict(settings.corrections)
        self.settings = replace(self.settings, corrections=settings.corrections)

    @property
    def activation_checkpointing(self) -> str:
        """What the backward pass recomputes of the decoder: none, selective or full."""
        decoder = self.language_model.model
        return "full" if decoder.gradient_checkpointing else decoder.recompute

    @activation_checkpointing.setter
    def activation_checkpointing(self, value: str) -> None:
        self.language_model.model.recompute = value

    def encode_vision(self, pixel_values: Tensor) -> Tensor:
        """Return (F, P, W) patches of normalised pixels (F, 3, S, S); without a graph when the tower is frozen."""
        side = self.settings.vision.force_image_size
        if pixel_values.shape[-2:] != (side, side):
            raise ValueError(f"frames must be {side} x {side} pixels, got {tuple(pixel_values.shape[-2:])}")
        with _graph_if_trainable(self.vision_model.vit):
            return self.vision_model.vit(pixel_values.to(self.dtype))

    def encode_audio(self, mel: Tensor) -> Tensor:
        """Return (C, positions, W) rows of log-mel (C, M, 2 * positions); without a graph when the tower is frozen."""
        with _graph_if_trainable(self.speech_encoder):
            return self.speech_encoder(mel.to(self.dtype))

    def project_audio(self, speech: Tensor) -> Tensor:
        """Return (C * positions / pooling, D): rows (C, positions, W) joined in time, pooled, projected."""
        return self.mlp2(pool_rows(speech, pooling=self.settings.audio_pooling))

    def fuse(
        self, patches: Tensor, speech: Sequence[Tensor], *, frame_counts: Sequence[int], seconds: Sequence[int]
    ) -> Tensor:
        """Return the fused tokens of all clips, (sum of F, n, D): one merger call and one projector call.

        Args:
            patches: (sum of F, P, W) of the clips in order.
            speech: per clip (C, positions, W).
            frame_counts: F of each clip.
            seconds: seconds of audio that count, per clip.
        """
        settings = self.settings
        visual = self.vision_model.perceive(patches)
        pooled = [pool_rows(rows, pooling=settings.audio_pooling) for rows in speech]
        # Rows past the counted seconds are never read, so they are not projected.
        used = [rows[: count * settings.rows_per_second] for rows, count in zip(pooled, seconds, strict=True)]
        projected = self.mlp2(torch.cat(used)).split([len(rows) for rows in used])
        addends = [
            audio_for_frames(
                rows,
                frames=frames,
                tokens=visual.shape[1],
                seconds=count,
                max_num_frame=settings.max_num_frame,
                rows_per_second=settings.rows_per_second,
                exact=settings.corrections.exact_alignment,
            )
            for rows, frames, count in zip(projected, frame_counts, seconds, strict=True)
        ]
        return visual + torch.cat(addends)

    def embed_media(self, media: Sequence[Media], *, features: FeatureStore | None = None) -> Tensor:
        """Return the fused tokens of all clips in order, (sum of F * n, D).

        The merger and the projector are called exactly once, with or without media: a rank without media neither
        hangs the others nor leaves their parameters without gradients.

        Args:
            media: clips; a missing picture is zero pixel values, a missing sound its own mel.
            features: disk cache of tower outputs, read and filled while both towers are frozen.
        """
        if not media:
            return self._no_media()
        frozen = not (_trainable(self.vision_model.vit) or _trainable(self.speech_encoder))
        patches, speech = tower_outputs(
            media,
            towers=Towers(encode_vision=self.encode_vision, encode_audio=self.encode_audio),
            settings=self.settings,
            features=features if frozen else None,
            device=self.device,
            dtype=self.dtype,
        )
        fused = self.fuse(
            torch.cat(patches),
            speech,
            frame_counts=[item.frame_count for item in media],
            seconds=[item.seconds for item in media],
        )
        return fused.flatten(0, 1)

    def _no_media(self) -> Tensor:
        """Return (0, D) that still ties merger and projector to the loss with zero gradients."""
        vision, audio = self.settings.vision, self.settings.audio
        side = vision.force_image_size // vision.patch_size
        patches = torch.zeros(1, side * side, vision.hidden_size, device=self.device, dtype=self.dtype)
        rows = torch.zeros(1, audio.d_model, device=self.device, dtype=self.dtype)
        return self.vision_model.perceive(patches)[0, :0] + self.mlp2(rows)[:0]

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        segments: Segments | None = None,
        media: Sequence[Media] = (),
        target_positions: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        mels: Tensor | None = None,
        duration: int | Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
        labelled_only: bool = False,
        features: FeatureStore | None = None,
        return_dict: bool = True,
    ) -> ArcVideoOutput:
        """Return logits of a packed row (L,) or of a batch (B, L).

        Args:
            input_ids: newline ids already replaced; image ids are filled with fused tokens in order.
            position_ids: (4, L) or (B, 4, L); by default the running index on every axis (text, cached decoding).
            segments: how a packed row is cut; one plain segment by default. Packed rows only.
            media: clips, in the order of their image tokens.
            target_positions: (T,) positions of a packed row whose logits are wanted.
            past_key_values: a transformers cache; batches only. New tokens follow its tokens.
            attention_mask: (B, cached + L) 1 for tokens, 0 for padding.
            pixel_values: (F, 3, S, S) normalised frames of one clip, instead of `media`; needs mels.
            mels: (C, M, T) or (C * M, T) log-mel of that clip.
            duration: seconds of its audio that count, at most those there are; all of them by default.
            labels: shaped like input_ids, -100 where not supervised: adds `loss`, shifted by one.
            use_cache: make a cache when none is given.
            logits_to_keep: of a batch, only the last so many positions, or those of a tensor (n,); 0 for all.
            labelled_only: compute logits (T, V) only at the T positions whose next label is supervised.
            features: disk cache of tower outputs.
            return_dict: passed by transformers; the output is named in any case.

        Raises:
            ValueError: image tokens and media that do not match, or arguments of the other form.
        """
        packed = input_ids.dim() == 1
        if packed and (past_key_values is not None or use_cache or attention_mask is not None):
            raise ValueError("a packed row (L,) takes segments; caches and attention_mask need a batch (B, L)")
        if not packed and (segments is not None or target_positions is not None):
            raise ValueError("segments and target_positions need a packed row (L,), got a batch (B, L)")
        fused = self._fused(packed, media, pixel_values=pixel_values, mels=mels, duration=duration, features=features)
        cache = DynamicCache() if use_cache and past_key_values is None else past_key_values
        past = 0 if cache is None else cache.get_seq_length()
        embeds = self._embed(input_ids, fused, decoding=past > 0)
        if position_ids is None:
            position_ids = _running_positions(input_ids, past=past, attention_mask=attention_mask)
        plan = self._plan(input_ids, embeds, segments, cache=cache, attention_mask=attention_mask)
        hidden = self.language_model.model(embeds, positions=position_ids, plan=plan, cache=cache)
        head = self.language_model.lm_head
        loss = None
        if labelled_only and labels is not None:
            targets = labels[..., 1:].flatten()
            supervised = (targets != -100).nonzero().squeeze(1)
            logits = head(hidden[..., :-1, :].flatten(0, -2).index_select(0, supervised))
            loss = cross_entropy(logits, targets[supervised])
        else:
            chosen = hidden if target_positions is None else hidden.index_select(0, target_positions)
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = head(chosen[..., kept, :])
            if labels is not None:
                loss = cross_entropy(logits[..., :-1, :].flatten(0, -2), labels[..., 1:].flatten())
        return ArcVideoOutput(loss=loss, logits=logits, past_key_values=cache, last_hidden_state=hidden)

    def _fused(
        self,
        packed: bool,
        media: Sequence[Media],
        *,
        pixel_values: Tensor | None,
        mels: Tensor | None,
        duration: int | Tensor | None,
        features: FeatureStore | None,
    ) -> Tensor | None:
        """Return fused tokens (N, D), or None when a batch has no media at all."""
        if pixel_values is None and mels is None:
            # Packed rows are training micro-batches: every rank must call the projectors, media or not.
            return self.embed_media(media, features=features) if packed or media else None
        if pixel_values is None or mels is None or media:
            raise ValueError("give pixel_values and mels together, and no media beside them")
        mels = mels.reshape(-1, self.settings.audio.num_mel_bins, mels.shape[-1])
        whole = len(mels) * self.settings.audio.max_source_positions // 50
        seconds = whole if duration is None else min(int(duration), whole)
        speech = self.encode_audio(mels)
        patches = self.encode_vision(pixel_values)
        return self.fuse(patches, [speech], frame_counts=[len(patches)], seconds=[seconds]).flatten(0, 1)

    def _embed(self, input_ids: Tensor, fused: Tensor | None, *, decoding: bool) -> Tensor:
        """Return (..., L, D) with fused tokens in place of image ids."""
        embeds = self.language_model.model.embed_tokens(input_ids)
        if fused is None and decoding:
            # A sampled image id is text like any other; looking for one would cost a device sync a step.
            return embeds
        slots = (input_ids.flatten() == self.config.image_token_id).nonzero().squeeze(1)
        count = 0 if fused is None else len(fused)
        if len(slots) != count:
            raise ValueError(
                f"the ids hold {len(slots)} image tokens but the media give {count}: "
                f"a frame has {self.settings.tokens_per_frame} of them here"
            )
        if fused is None:
            return embeds
        return embeds.flatten(0, -2).index_copy(0, slots, fused.to(embeds.dtype)).view_as(embeds)

    def _plan(
        self,
        input_ids: Tensor,
        embeds: Tensor,
        segments: Segments | None,
        *,
        cache: Any,
        attention_mask: Tensor | None,
    ) -> Plan:
        length, dtype, device = embeds.shape[-2], embeds.dtype, embeds.device
        implementation = self.config._attn_implementation or "sdpa"
        if embeds.dim() == 3 and (cache is not None or not self.settings.corrections.separate_documents):
            past = 0 if cache is None else cache.get_seq_length()
            return batch_plan(
                queries=length,
                keys=past + length,
                attention_mask=attention_mask,
                dtype=dtype,
                device=device,
                implementation=implementation,
            )
        if embeds.dim() == 3:
            end = self.config.stop_token_ids[0]
            segments = document_segments(input_ids, end=end, attention_mask=attention_mask)
        elif segments is None:
            segments = Segments(starts=torch.tensor([0, length]), parents=torch.tensor([-1]))
        if int(segments.starts[-1]) != input_ids.numel():
            raise ValueError(f"segments cover {int(segments.starts[-1])} tokens but the row has {length}")
        return packed_plan(segments, dtype=dtype, device=device, implementation=implementation)


def _running_positions(input_ids: Tensor, *, past: int, attention_mask: Tensor | None) -> Tensor:
    """Return the running index of tokens, padding not counted, on all four axes: (..., 4, L)."""
    length = input_ids.shape[-1]
    if attention_mask is None:
        index = torch.arange(past, past + length, device=input_ids.device).expand(input_ids.shape)
    else:
        index = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return index.unsqueeze(-2).expand(*index.shape[:-1], 4, length)


def _trainable(tower: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in tower.parameters())


def _graph_if_trainable(tower: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Return a context without autograd for a frozen tower."""
    return contextlib.nullcontext() if _trainable(tower) else torch.no_grad()


AutoModel.register(ArcVideoConfig, ArcVideoForConditionalGeneration)
AutoModelForCausalLM.register(ArcVideoConfig, ArcVideoForConditionalGeneration)
AutoModelForImageTextToText.register(ArcVideoConfig, ArcVideoForConditionalGeneration)
