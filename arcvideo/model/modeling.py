"""`ArcVideoForConditionalGeneration`: towers, projectors, fusion and decoder in one transformers model.

Shapes: B batch, L tokens, T targets, F frames, S image side, P patches, C mel chunks, M mel bins, W tower width,
n tokens of a frame, D text width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.models.auto import modeling_auto

from arcvideo.model.arc_hunyuan.head import as_head, score
from arcvideo.model.attention import AttentionPlan
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.carried import MODEL_KINDS, auto_map, share, write_code
from arcvideo.model.disk.weights import check_fit
from arcvideo.model.families.table import parts_of
from arcvideo.model.fused import fuse
from arcvideo.model.generation import ArcVideoGenerationMixin, generation_config
from arcvideo.model.inputs import check_batch, four_axes, insert, running_positions
from arcvideo.model.output import ArcVideoOutput, Trace, cross_entropy, seen_states
from arcvideo.model.plans import batch_plan, document_segments, packed_plan
from arcvideo.model.settings import ModelSettings, check
from arcvideo.model.towers.audio import AudioEncoder, audio_projector
from arcvideo.model.towers.features import FeatureStore
from arcvideo.model.towers.fused import ArcVideoMediaMixin
from arcvideo.objectives.scores import Ask
from arcvideo.types import Media, Segments


class ArcVideoForConditionalGeneration(ArcVideoMediaMixin, ArcVideoGenerationMixin, PreTrainedModel):
    """ARC-Hunyuan-Video and its relatives; tiny and 7B differ by configuration only, families by their parts.

    Parameter names are ARC-Hunyuan-Video's released key names; inside towers and decoder they are the family's.

    As in the released code the vision model and the speech encoder start frozen; the language model and the audio
    projector learn. `requires_grad_` on their parameters, as `stage.train` sets it, lets the others learn too.
    """

    config_class = ArcVideoConfig
    main_input_name = "input_ids"
    input_modalities: ClassVar[list[str]] = ["image", "video", "audio", "text"]
    accepts_loss_kwargs = True
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
        text: Any = config.text_config
        text.tie_word_embeddings = config.tie_word_embeddings
        settings = config.settings
        check(settings)
        width = settings.text.hidden_size
        self.settings = settings
        self._auto_attention = False
        self.parts = parts_of(settings.family)
        self.vision_model = self.parts.vision(settings)
        self.speech_encoder = AudioEncoder(settings.audio)
        self.mlp2 = audio_projector(settings.audio.d_model, text_width=width)
        self.language_model: Any = self.parts.language(settings)
        self.post_init()
        self.generation_config = generation_config(config)
        self.vision_model.requires_grad_(False)
        self.speech_encoder.requires_grad_(False)
        self.vision_model.perceive.requires_grad_(settings.corrections.merger_gradient)

    def _init_weights(self, module: nn.Module) -> None:
        self.parts.initialize(module, settings=self.settings)

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
                check_fit(directory, state=cls(config).state_dict(), tied=config.tie_word_embeddings)
        model = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        loaded = model[0] if isinstance(model, tuple) else model
        # A generation_config.json may name one of them only.
        listed = loaded.generation_config.eos_token_id
        stops = listed if isinstance(listed, list) else [] if listed is None else [listed]
        loaded.generation_config.eos_token_id = list(dict.fromkeys([*stops, *loaded.config.stop_token_ids]))
        return model

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: `save_pretrained` writes the code."""

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:  # type: ignore[override]
        """Write configuration, weights, and the code for `trust_remote_code`, in files that others may read.

        Raises:
            ValueError: `push_to_hub`, which would leave the code behind; the method of that name takes it along.
        """
        if options.get("push_to_hub"):
            raise ValueError("push_to_hub=True: save the model to a directory and upload that, or call push_to_hub()")
        models = auto_map(*MODEL_KINDS, name=type(self).__name__)
        self.config.auto_map = {**auto_map("AutoConfig", name=type(self.config).__name__), **models}
        super().save_pretrained(save_directory, **options)
        if options.get("is_main_process", True):
            write_code(Path(save_directory))
            share(Path(save_directory))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.model.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.language_model.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Take another head, which `tie_weights` ties to the embedding."""
        self.language_model.lm_head = as_head(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Return the embedding with another number of rows; the head follows it, and so do the settings."""
        table = super().resize_token_embeddings(*args, **kwargs)
        self.settings = replace(self.config.settings, activation_checkpointing=self.settings.activation_checkpointing)
        return table

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Choose the attention of the decoder; the towers know one way only, and their blocks just repeat the name."""
        parts = [getattr(self.config, name) for name in self.config.sub_configs]
        before = [part._attn_implementation for part in parts]
        try:
            if isinstance(attn_implementation, str):
                # They are no models of their own, which transformers would warn of at every call.
                for part in parts:
                    part._attn_implementation_internal = attn_implementation
            super().set_attn_implementation(attn_implementation, *args, **kwargs)
        except (ValueError, ImportError):
            for part, name in zip(parts, before, strict=True):
                part._attn_implementation_internal = name
            raise

    def adopt(self, settings: ModelSettings) -> None:
        """Take over what settings say about computing: checkpointing, attention, fusion, corrections; sizes stay.

        Which parts learn is left alone: that is `requires_grad_`'s, and in a stage `stage.train`'s, to say.
        """
        self.activation_checkpointing = settings.activation_checkpointing
        # transformers knows three of the names; `auto` is theirs `sdpa` until a plan is made.
        self.set_attn_implementation("sdpa" if settings.attention == "auto" else settings.attention)
        self._auto_attention = settings.attention == "auto"
        fuse(self.language_model, how=settings.compile)
        self.config.corrections = asdict(settings.corrections)
        self.settings = replace(self.settings, corrections=settings.corrections)

    @property
    def activation_checkpointing(self) -> str:
        """What the backward pass recomputes of the decoder and of towers that learn: none, selective or full."""
        decoder = self.language_model.model
        return "full" if decoder.layers[0].gradient_checkpointing else decoder.recompute

    @activation_checkpointing.setter
    def activation_checkpointing(self, value: str) -> None:
        for part in (self.language_model.model, self.vision_model.vit, self.speech_encoder):
            part.recompute = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        media: Sequence[Media] = (),
        pixel_values: Tensor | None = None,
        mels: Tensor | None = None,
        duration: int | Tensor | None = None,
        segments: Segments | None = None,
        target_positions: Tensor | None = None,
        ask: Ask | None = None,
        supervised_only: bool = False,
        features: FeatureStore | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ArcVideoOutput | tuple[Any, ...]:
        """Return logits of a packed row (L,) or of a batch (B, L).

        Args:
            input_ids: newline ids already replaced; image ids are filled with fused tokens in order.
            attention_mask: (B, cached + L) 1 for tokens, 0 for padding.
            position_ids: (4, L) or (B, 4, L); shaped like the ids: the same on every axis; the running index without.
            past_key_values: a transformers cache; batches only. New tokens follow its tokens.
            inputs_embeds: (B, L, D) in place of input_ids, fused tokens already inside.
            labels: shaped like input_ids, -100 where not supervised: adds `loss`, shifted by one.
            use_cache: make a cache when none is given.
            logits_to_keep: only the last so many positions, or those of a tensor (n,); 0 for all.
            media: clips, in the order of their image tokens.
            pixel_values, mels, duration: one clip in place of `media`: normalised frames (F, 3, S, S), mel (C, M, T)
                or (C * M, T), and the seconds of it that count; all of them by default.
            segments: how a packed row is cut; one plain segment by default.
            target_positions: (T,) positions of a packed row whose logits are wanted.
            ask: about the targets at these positions: `scores` in place of `logits`.
            supervised_only: compute logits (T, V) only at the T positions whose next label is supervised.
            features: disk cache of tower outputs.
            num_items_in_batch: targets of all micro-batches of a step: the loss is the sum over their number.
            output_hidden_states, output_attentions: return what each layer makes; weights of batches only.
            return_dict: False for a tuple.

        Raises:
            ValueError: image tokens and media that do not match, shapes that do not, or arguments of the other form.
        """
        packed = check_batch(
            input_ids,
            inputs_embeds,
            batch_only={"past_key_values": past_key_values, "attention_mask": attention_mask, "use_cache": use_cache},
            packed_only={"segments": segments, "target_positions": target_positions, "ask": ask},
            has_media=bool(media) or pixel_values is not None,
        )
        cache = DynamicCache(config=self.config) if use_cache and past_key_values is None else past_key_values
        past = 0 if cache is None else int(cache.get_seq_length())
        if input_ids is not None:
            how: dict[str, Any] = {"features": features, "device": input_ids.device}
            fused = self._fused(packed, media, pixel_values=pixel_values, mels=mels, duration=duration, **how)
            inputs_embeds = self._embed(input_ids, fused, decoding=past > 0)
        assert inputs_embeds is not None
        shape = inputs_embeds.shape[:-1]
        if position_ids is None:
            position_ids = running_positions(shape, past=past, attention_mask=attention_mask, like=inputs_embeds)
        trace = self._trace(output_hidden_states, output_attentions)
        shown = trace is not None and trace.attentions is not None
        rule: dict[str, Any] = {"cache": cache, "attention_mask": attention_mask, "written_out": shown}
        plan = self._plan(input_ids, inputs_embeds, segments, **rule)
        positions = four_axes(position_ids, shape=shape)
        hidden = self.language_model.model(inputs_embeds, positions=positions, plan=plan, cache=cache, trace=trace)
        kept = target_positions if target_positions is not None else logits_to_keep
        results: dict[str, Any] = self._results(
            hidden, labels, ask=ask, kept=kept, few=supervised_only, count=num_items_in_batch
        )
        output = ArcVideoOutput(past_key_values=cache, last_hidden_state=hidden, **results, **seen_states(trace))
        named = self.config.return_dict if return_dict is None else return_dict
        return output if named else output.to_tuple()

    def _results(
        self, hidden: Tensor, labels: Tensor | None, *, ask: Ask | None, kept: int | Tensor, **how: Any
    ) -> dict[str, Tensor | None]:
        """Return scores of the targets at the kept positions where something is asked, else loss and logits."""
        if ask is None:
            loss, logits = self._logits(hidden, labels, kept=kept, **how)
            return {"loss": loss, "logits": logits}
        chosen = hidden.index_select(0, kept) if isinstance(kept, Tensor) else hidden[slice(-kept, None)]
        words = self.settings.text.vocab_size
        return {"scores": score(self.language_model.lm_head, chosen, ask=ask, words=words)}

    def _logits(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        *,
        kept: int | Tensor,
        few: bool,
        count: Tensor | int | None,
    ) -> tuple[Tensor | None, Tensor]:
        """Return loss and logits: at the kept positions, or with `few` at those whose next label is supervised."""
        head = self.language_model.lm_head
        if few and labels is not None:
            targets = labels[..., 1:].flatten()
            supervised = (targets != -100).nonzero().squeeze(1)
            logits = head(hidden[..., :-1, :].flatten(0, -2).index_select(0, supervised))
            return cross_entropy(logits, targets[supervised], count=count), logits
        if isinstance(kept, Tensor):
            chosen = hidden.index_select(-2, kept)
        else:
            chosen = hidden[..., slice(-kept, None), :]
        logits = head(chosen)
        if labels is None:
            return None, logits
        return cross_entropy(logits[..., :-1, :].flatten(0, -2), labels[..., 1:].flatten(), count=count), logits

    def _trace(self, hidden: bool | None, attentions: bool | None) -> Trace | None:
        hidden = self.config.output_hidden_states if hidden is None else hidden
        attentions = self.config.output_attentions if attentions is None else attentions
        if not hidden and not attentions:
            return None
        return Trace(hidden=[] if hidden else None, attentions=[] if attentions else None)

    def _embed(self, input_ids: Tensor, fused: Tensor | None, *, decoding: bool) -> Tensor:
        """Return (..., L, D) with fused tokens in place of image ids."""
        embed = self.language_model.model.embed_tokens
        if fused is None and decoding:
            # A sampled image id is text like any other; looking for one would cost a device sync a step.
            return embed(input_ids)
        slots = (input_ids.flatten() == self.config.image_token_id).nonzero().squeeze(1)
        count = 0 if fused is None else len(fused)
        if len(slots) != count:
            raise ValueError(
                f"the ids hold {len(slots)} image tokens but the media give {count}: "
                f"{_frames(self.settings.kind.frames_per_group)} {self.settings.tokens_per_group} of them here"
            )
        # After the count: ids of another model's processor may lie beyond the table.
        return embed(input_ids) if fused is None else insert(embed(input_ids), slots=slots, tokens=fused)

    def _plan(
        self,
        input_ids: Tensor | None,
        embeds: Tensor,
        segments: Segments | None,
        *,
        cache: Any,
        attention_mask: Tensor | None,
        written_out: bool,
    ) -> AttentionPlan:
        length, dtype, device = embeds.shape[-2], embeds.dtype, embeds.device
        implementation = self.config._attn_implementation or "sdpa"
        if implementation == "sdpa" and self._auto_attention:
            implementation = "auto"
        one_document = cache is not None or written_out or input_ids is None
        if embeds.dim() == 3 and (one_document or not self.settings.corrections.separate_documents):
            past = 0 if cache is None else int(cache.get_seq_length())
            return batch_plan(
                queries=length,
                keys=past + length,
                attention_mask=attention_mask,
                dtype=dtype,
                device=device,
                implementation=implementation,
                written_out=written_out,
            )
        assert input_ids is not None
        if embeds.dim() == 3:
            end = self.config.stop_token_ids[0]
            segments = document_segments(input_ids, end=end, attention_mask=attention_mask)
        elif segments is None:
            segments = Segments(starts=torch.tensor([0, length]), parents=torch.tensor([-1]))
        if int(segments.starts[-1]) != embeds.shape[:-1].numel():
            raise ValueError(f"segments cover {int(segments.starts[-1])} tokens but the row has {length}")
        width = self.settings.text.attention_head_dim
        return packed_plan(segments, dtype=dtype, device=device, implementation=implementation, width=width)


def _frames(count: int) -> str:
    return "a frame has" if count == 1 else f"{count} frames have"


for _kind in MODEL_KINDS:
    getattr(modeling_auto, _kind).register(ArcVideoConfig, ArcVideoForConditionalGeneration)
