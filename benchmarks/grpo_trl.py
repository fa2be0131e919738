"""Whole GRPO steps of ours and of TRL's GRPOTrainer, in turn, on one model.

TRL trains a subclass of our own model that takes `pixel_values` as its trainer hands them over: the same weights, ViT,
decoder and attention kernels on both sides. Our step runs first; TRL's sampler is then made to draw the same tokens, so
that both sides have the same completions, rewards and gradients; that both arrive at the same weights is asserted.
TRL's time runs from `on_step_begin` to `on_step_end`: preprocessing of images, generation, reference, update. Ours
is the same from pixels on: encoding, prefill, decoding, old and reference log-probabilities, rewards, update.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TrainerCallback

from arcvideo.feed.prompts import Prompt, StepPrompts
from arcvideo.flops import Segment, decoder_flops, media_flops
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.positions import replace_newlines, xd_positions
from arcvideo.model.settings import AudioSettings, ModelSettings, TextSettings, VisionSettings
from arcvideo.model.special import special_ids
from arcvideo.model.towers.media import FRAMES_PER_CALL, normalize_pixels
from arcvideo.objectives.grpo import Grpo
from arcvideo.objectives.scores import loss_of
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.processes.ranks import join
from arcvideo.processing import ArcVideoProcessor
from arcvideo.render import render_branch, render_prefix
from arcvideo.rollout.source import RolloutSource
from arcvideo.runner.engine import Engine
from arcvideo.runner.settings import OptimizerSettings
from arcvideo.types import Media, Sample, Turn
from benchmarks.table import Row, median_ratio, ratio_spread

PROMPTS, GENERATIONS, FRAMES, COMPLETION = 2, 8, 24, 32
STEPS, WARM_UP, TARGET = 5, 1, 5.0
LR, CLIP = 1e-3, 1.0
WORDS = "which colour has the shape that moves from the left side to the right side of the picture and then vanishes"
GRPO = GrpoSettings(
    num_generations=GENERATIONS, num_prompts=PROMPTS, prompts_per_batch=PROMPTS, max_completion_length=COMPLETION,
    beta=0.04, rewards={f"{__name__}:variety": 1.0}, log_completions=0,
)  # fmt: skip


def variety(completions: Sequence[Any], **columns: Any) -> list[float]:
    """Share of different characters; TRL hands over messages, we hand over texts."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [len(set(text)) / max(len(text), 1) for text in texts]


def tokenizer() -> Any:
    return build_tiny_tokenizer([WORDS, "red green blue circle square", "0 1 2 3 4 5 6 7 8 9"] * 4, vocab_size=448)


Model = TypeVar("Model", bound=ArcVideoForConditionalGeneration)


class PixelModel(ArcVideoForConditionalGeneration):
    """Our model as TRL calls it: rows (B, L) with unreplaced newline ids, and the pixels of all rows' frames."""

    forced: Tensor
    """(B, C) int64: the tokens `generate` has to draw."""
    special: Any

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> Any:
        media: tuple[Media, ...] = ()
        position_ids = None
        if pixel_values is not None:
            media = self._clips(pixel_values, rows=len(input_ids))
            position_ids = torch.stack([xd_positions(row, self.special) for row in input_ids])
        return super().forward(
            replace_newlines(input_ids, special=self.special),
            position_ids=position_ids,
            media=media,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep if use_cache else 1,  # TRL's own head reads the hidden states
        )

    def _clips(self, pixel_values: Tensor, *, rows: int) -> tuple[Media, ...]:
        """One clip for each row; the sound is silent and encoded once."""
        patches = torch.cat([self.encode_vision(part) for part in pixel_values.split(FRAMES_PER_CALL)])
        audio = self.settings.audio
        chunks = -(-FRAMES * 50 // audio.max_source_positions)
        speech = self.encode_audio(torch.zeros(chunks, audio.num_mel_bins, 2 * audio.max_source_positions))
        return tuple(
            Media(key=str(row), frame_count=len(part), seconds=len(part), has_video=True, has_audio=False,
                  patches=part, speech=speech)
            for row, part in enumerate(patches.chunk(rows))
        )  # fmt: skip

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        return torch.arange(inputs_tensor.shape[1]).expand(len(inputs_tensor), -1)  # `forward` makes its own

    def generate(self, input_ids: Tensor, **options: Any) -> Any:  # type: ignore[override]
        drawn = _Drawn(self.forced, start=input_ids.shape[1])
        return super().generate(input_ids, logits_processor=LogitsProcessorList([drawn]), **options)


class _Drawn(LogitsProcessor):
    """Leaves one token a row to the sampler: the one that our side drew."""

    def __init__(self, tokens: Tensor, *, start: int) -> None:
        self.tokens, self.start = tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.tokens[:, input_ids.shape[1] - self.start, None]
        return torch.full_like(scores, float("-inf")).scatter(1, token, 0.0)


class PixelProcessor(ArcVideoProcessor):
    """What TRL asks of a processor, as cheaply as possible: ids are looked up, frames are normalised."""

    prompts: dict[str, list[int]]
    """Question -> ids."""

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = False, **options: Any) -> Any:
        talks = conversation if tokenize else [conversation]
        parts = [[part for message in talk for part in message["content"]] for talk in talks]
        texts = ["".join(part["text"] for part in talk if part["type"] == "text") for talk in parts]
        if not tokenize:
            return texts[0]
        images = [[part["image"] for part in talk if part["type"] == "image"] for talk in parts]
        return {"input_ids": [self.prompts[text] for text in texts], "pixel_values": _pixels(images)}

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:  # type: ignore[override]
        ids = torch.tensor([self.prompts[question] for question in text])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": _pixels(images)}


def _pixels(images: Sequence[Sequence[Any]]) -> Tensor:
    """(sum of frames, 3, S, S) float32 of pictures."""
    stacked = np.stack([np.asarray(image) for row in images for image in row])
    return normalize_pixels(torch.from_numpy(stacked).permute(0, 3, 1, 2), dtype=torch.float32)


def make_model(words: Any, kind: type[Model]) -> Model:
    """A few million parameters, the same for every kind; next to no sound tower, because TRL's models have none."""
    torch.manual_seed(0)
    text = TextSettings(
        vocab_size=0, hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, attention_head_dim=32, rope_alpha=1.0, initializer_range=0.1,
    )  # fmt: skip
    vision = VisionSettings(hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                            force_image_size=256, max_image_size=256)  # fmt: skip
    audio = AudioSettings(d_model=16, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=16,
                          num_mel_bins=80, max_source_positions=400)  # fmt: skip
    settings = ModelSettings(text=text, vision=vision, audio=audio, audio_pooling=10)
    special = special_ids(words)
    model = kind(ArcVideoConfig.from_settings(settings, vocab_size=len(words), special=special))
    model.requires_grad_(False)
    model.language_model.requires_grad_(True)
    return model


def make_prompts(words: Any, *, settings: ModelSettings) -> list[Prompt]:
    """Questions of equal length about clips of noise, `PROMPTS` for each step."""
    generator = torch.Generator().manual_seed(0)
    side = settings.vision.force_image_size
    found = []
    for number in range(PROMPTS * (STEPS + WARM_UP)):
        media = Media(
            key=f"clip-{number}", frame_count=FRAMES, seconds=FRAMES, has_video=True, has_audio=False,
            pixels=torch.randint(0, 256, (FRAMES, 3, side, side), generator=generator, dtype=torch.uint8),
        )  # fmt: skip
        question = f"{WORDS} {number // 10} {number % 10}"
        sample = Sample(key=f"clip-{number}/0", task="qa", turns=(Turn(question=question, answer="red"),),
                        media_key=media.key)  # fmt: skip
        branch = render_branch(sample, tokenizer=words, wording="brief")
        found.append(
            Prompt(
                prefix_ids=render_prefix(frame_count=FRAMES, before="", tokenizer=words, layout=settings.layout),
                question_ids=branch.ids[: branch.question_tokens], media=(media,), sample=sample, source="noise",
                specials=special_ids(words),
            )
        )  # fmt: skip
    assert len({prompt.length for prompt in found}) == 1
    return found


class _Prompts:
    """The prompts of a step."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self._all = prompts

    def prompts(self, step: int, *, count: int) -> StepPrompts:
        places = range(step * count, (step + 1) * count)
        asked = zip(places, self._all[places.start :], strict=False)
        return StepPrompts(prompts=[replace(prompt, place=place) for place, prompt in asked])


@dataclass
class _Measured:
    """Figures of all steps."""

    ours: list[float] = field(default_factory=list)
    trl: list[float] = field(default_factory=list)
    norms: list[tuple[float, float]] = field(default_factory=list)
    """Gradient norms, ours and TRL's."""
    frames: dict[str, int] = field(default_factory=lambda: {"ours": 0, "trl": 0})
    """Frames that the vision tower has read."""


class OurSteps:
    """Our framework's steps: engine, rollout source and objective, as the Runner calls them."""

    def __init__(self, model: Any, prompts: list[Prompt], *, words: Any) -> None:
        optimizer = OptimizerSettings(lr=LR, betas=[0.9, 0.999], weight_decay=0.0)
        self.engine = Engine(model, world=join(), settings={}, optimizer=optimizer, clip_norm=CLIP)
        self.source = RolloutSource(
            _Prompts(prompts), engine=self.engine, tokenizer=words, settings=GRPO, own_forward=True
        )
        self.objective = Grpo(GRPO)

    def step(self, number: int) -> float:
        """One optimizer step; returns the norm of the gradient."""
        batches = self.source.batches(number).batches
        weight = sum(float(batch.target_weights.sum()) for batch in batches)
        for place, batch in enumerate(batches):
            loss = loss_of(self.objective, batch, run=self.engine)
            self.engine.backward(loss.total / weight, last=place == len(batches) - 1)
        self.engine.set_lr(1.0)
        return self.engine.step().grad_norm

    def drawn(self, number: int, *, pad: int) -> Tensor:
        """(completions, C) int64 tokens of the step."""
        rows = []
        for batch in self.source.batches(number).batches:
            lengths = torch.bincount(batch.target_samples).tolist()
            rows += [torch.nn.functional.pad(ids, (0, COMPLETION - len(ids)), value=pad)
                     for ids in batch.target_ids.split(lengths)]  # fmt: skip
        return torch.stack(rows)


class _Turns(TrainerCallback):
    """Before each of TRL's steps one of ours, then TRL's clock."""

    def __init__(self, ours: OurSteps, theirs: PixelModel, *, measured: _Measured) -> None:
        self.ours, self.theirs, self.measured = ours, theirs, measured

    def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        began = time.perf_counter()
        self._norm = self.ours.step(state.global_step)
        self.measured.ours.append(time.perf_counter() - began)
        self.theirs.forced = self.ours.drawn(state.global_step, pad=self.theirs.special.pad)
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.measured.trl.append(time.perf_counter() - self._began)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **options: Any) -> None:
        if logs and "grad_norm" in logs:
            self.measured.norms.append((self._norm, float(logs["grad_norm"])))


def trainer(model: PixelModel, prompts: list[Prompt], *, words: Any, folder: str) -> Any:
    """TRL's GRPOTrainer with the same algorithm and optimizer as ours."""
    from datasets import Dataset
    from PIL import Image
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    arguments = GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, per_device_train_batch_size=PROMPTS * GENERATIONS, gradient_accumulation_steps=1,
        num_generations=GENERATIONS, max_completion_length=COMPLETION, temperature=1.0, top_p=1.0, top_k=0, beta=0.0,
        epsilon=GRPO.epsilon, loss_type="grpo", scale_rewards="group", use_bias_correction_kl=False,
        shuffle_dataset=False, max_steps=STEPS + WARM_UP, logging_steps=1, learning_rate=LR,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.999,
        max_grad_norm=CLIP, optim="adamw_torch",
    )  # fmt: skip
    processor = PixelProcessor(words, layout=model.settings.layout)
    processor.prompts = {prompt.question: prompt.ids.tolist() for prompt in prompts}
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt.question}],
            "images": [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in prompt.media[0].pixels],
        }
        for prompt in prompts
    ]
    reference = copy.deepcopy(model).requires_grad_(False).eval()
    made = GRPOTrainer(model=model, reward_funcs=variety, args=arguments, train_dataset=Dataset.from_list(rows),
                       processing_class=processor)  # fmt: skip
    # TRL would load its reference from a path; it is the same class, patched the same way.
    add_fused_lm_head(reference, temperature=1.0)
    made.beta, made.ref_model = GRPO.beta, reference
    return made


def _flop_bound(settings: ModelSettings, *, prompt: int, length: int) -> float:
    """Operations of TRL's step over ours, for one prompt and its group."""
    text = settings.text
    tower = media_flops(settings, frames=FRAMES, seconds=FRAMES, chunks=3).total
    # one forward each: with all positions through TRL's head (on a CPU it does not pick the labelled ones)
    whole = decoder_flops(text, [Segment(length=prompt + length)], targets=prompt + length).total
    prefill = decoder_flops(text, [Segment(length=prompt)], targets=1).total
    decode = decoder_flops(text, [Segment(length=length, prefix=prompt)], targets=length).total
    theirs = GENERATIONS * (3 * tower + prefill + decode + 4 * whole)
    # Reference, forward and twice that for the backward; the first rollout, one forward more, warms up.
    ours = tower + prefill + GENERATIONS * decode + 4 * (prefill + GENERATIONS * decode)
    return theirs / ours


def step_rows() -> tuple[list[Row], list[str]]:
    """Whole steps in turn; the row of the table and notes about it."""
    words = tokenizer()
    model, theirs = make_model(words, ArcVideoForConditionalGeneration), make_model(words, PixelModel)
    theirs.special = special_ids(words)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), theirs.parameters(), strict=True))
    prompts = make_prompts(words, settings=model.settings)
    begin = torch.cat([p.detach().flatten().clone() for p in model.language_model.parameters()])
    measured = _Measured()
    for name, tower in (("ours", model.vision_model.vit), ("trl", theirs.vision_model.vit)):
        tower.register_forward_pre_hook(lambda module, inputs, name=name: _count(measured, name, inputs))
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(theirs, prompts, words=words, folder=folder)
        made.ref_model.vision_model.vit._forward_pre_hooks = theirs.vision_model.vit._forward_pre_hooks
        ours = OurSteps(model, prompts, words=words)
        made.add_callback(_Turns(ours, theirs, measured=measured))
        made.train()
    flat = [torch.cat([p.detach().flatten() for p in side.language_model.parameters()]) for side in (model, theirs)]
    apart = float((flat[0] - flat[1]).norm() / (flat[0] - begin).norm())
    norms = max(abs(here - there) / there for here, there in measured.norms)
    steps = len(measured.trl)
    length = prompts[0].length
    row = Row(
        metric=f"GRPO step, {PROMPTS} prompts, {FRAMES} frames, P={length} C<={COMPLETION} G={GENERATIONS}, s",
        ours=statistics.median(measured.ours[WARM_UP:]),
        baseline=statistics.median(measured.trl[WARM_UP:]),
        ratio=median_ratio(measured.ours[WARM_UP:], measured.trl[WARM_UP:]),
        spread=ratio_spread(measured.ours[WARM_UP:], measured.trl[WARM_UP:]),
        target=TARGET,
        bound=_flop_bound(model.settings, prompt=length, length=COMPLETION),
        equal=apart < 0.02 and norms < 1e-3,
    )
    notes = [
        "GRPO step: the same model class, weights, kernels, prompts, tokens, rewards and optimizer; TRL's sampler "
        f"draws our tokens. After {steps} steps the weights differ by {apart:.2g} of the way they went; gradient "
        f"norms differ by at most {norms:.2g}",
        f"frames read by the vision tower in a step: ours {measured.frames['ours'] // steps}, "
        f"TRL {measured.frames['trl'] // steps}",
        "both sides take old log-probabilities from the update's own forward; we compare them with the sampler's. "
        "TRL's head reads all positions on a CPU, on a GPU only the labelled ones",
    ]
    return [row], notes


def _count(measured: _Measured, name: str, inputs: tuple[Tensor, ...]) -> None:
    measured.frames[name] += len(inputs[0])
