"""A model of a few thousand parameters with random weights, and prompts about random clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from arcvideo.feed.prompts import Prompt
from arcvideo.layout import MediaLayout
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import ModelSettings
from arcvideo.model.special import special_ids
from arcvideo.render import render_branch, render_prefix
from arcvideo.types import Media, Sample, Turn
from tests.model.small import SETTINGS as SMALL

LAYOUT = MediaLayout(image_size=128, mel_bins=80, audio_positions=100, audio_pooling=10)
SETTINGS = replace(
    SMALL,
    # Logits of a few nats: neither a coin toss over all tokens nor always the same one.
    text=replace(SMALL.text, vocab_size=0, intermediate_size=64, attention_head_dim=8, initializer_range=0.3),
    vision=replace(SMALL.vision, intermediate_size=32),
    audio=replace(SMALL.audio, encoder_ffn_dim=32, num_mel_bins=80),
    max_num_frame=ModelSettings().max_num_frame,
)


@cache
def tokenizer() -> Any:
    corpus = [
        "Which colour is seen?",
        "A.red\nB.blue",
        "When is it heard?",
        "Transcribe the speech.",
        "red blue one two",
    ]
    return build_tiny_tokenizer(corpus, vocab_size=400)


def make_model(*, seed: int = 0, width: int = 8) -> ArcVideoForConditionalGeneration:
    """A fresh model; towers frozen as in training, heads `width` wide."""
    torch.manual_seed(seed)
    settings = replace(SETTINGS, text=replace(SETTINGS.text, attention_head_dim=width))
    config = ArcVideoConfig.from_settings(settings, vocab_size=len(tokenizer()), special=special_ids(tokenizer()))
    model = ArcVideoForConditionalGeneration(config)
    model.requires_grad_(False)
    model.language_model.requires_grad_(True)
    return model


def make_media(key: str, *, frames: int = 2) -> Media:
    """A clip of noise with its own seed."""
    generator = torch.Generator().manual_seed(sum(map(ord, key)))
    return Media(
        key=key,
        frame_count=frames,
        seconds=frames,
        has_video=True,
        has_audio=True,
        pixels=torch.randint(0, 256, (frames, 3, 128, 128), generator=generator, dtype=torch.uint8),
        mel=torch.randn(-(-frames // 2), 80, 200, generator=generator),
    )


def make_prompt(
    key: str,
    *,
    task: str = "mcq",
    question: str = "Which colour is seen?\nA.red\nB.blue",
    answer: str = "A",
    truth: Mapping[str, Any] | None = None,
    media: Media | None = None,
    instruction: str = "none",
    tags: tuple[str, ...] = (),
) -> Prompt:
    """A prompt about a clip, or about nothing."""
    sample = Sample(
        key=key,
        task=task,
        turns=(Turn(question=question, answer=answer),),
        media_key=media.key if media else None,
        truth=truth if truth is not None else {"letter": answer, "options": ("red", "blue")},
        instruction=instruction,
    )
    branch = render_branch(sample, tokenizer=tokenizer(), wording="brief")
    prefix = torch.zeros(0, dtype=torch.int64).numpy()
    if media is not None:
        prefix = render_prefix(frame_count=media.frame_count, before="", tokenizer=tokenizer(), layout=LAYOUT)
    return Prompt(
        prefix_ids=prefix,
        question_ids=branch.ids[: branch.question_tokens],
        media=(media,) if media else (),
        sample=sample,
        source="test",
        tags=tags,
        specials=special_ids(tokenizer()),
    )


def make_prompts() -> list[Prompt]:
    """Prompts of different length about two clips, one question without a clip."""
    first, second = make_media("clip-a"), make_media("clip-b", frames=3)
    return [
        make_prompt("a/0", media=first),
        make_prompt("a/1", media=first, task="grounding", question="When is it heard?", truth={"span": (0.0, 1.0)}),
        make_prompt(
            "b/0", media=second, question="Which colour is seen in the clip one two?\nA.red\nB.blue", answer="B"
        ),
        make_prompt("t/0", question="red blue?", answer="B"),
    ]


def placed(prompts: Sequence[Prompt], *, step: int, count: int) -> list[Prompt]:
    """The prompts as those of a step, each at its place in the stream."""
    return [replace(prompt, place=step * count + number) for number, prompt in enumerate(prompts[:count])]


class Engine(SimpleNamespace):
    """What a rollout source needs of the runner's engine."""

    model: Any

    @contextmanager
    def whole_weights(self) -> Iterator[Any]:
        yield self.model

    @contextmanager
    def precision(self) -> Iterator[None]:
        yield


def full_logprobs(model: Any, *, prompt: Prompt, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """(C,) log-probs of a completion by one plain forward over everything, without cache, padding or sharing."""
    whole = torch.cat([prompt.input_ids, ids])
    start = prompt.length
    tail = torch.arange(start, start + len(ids)).expand(4, -1)
    positions = torch.cat([prompt.position_ids, tail], dim=1)
    with torch.no_grad():
        logits = model(input_ids=whole, position_ids=positions, media=prompt.media).logits[start - 1 : -1]
    return (logits.float() / temperature).log_softmax(-1).gather(1, ids[:, None])[:, 0]


def without_media_key(prompt: Prompt, *, suffix: str) -> Prompt:
    """The same prompt about a copy of its clip under another key, so that nothing is shared."""
    return replace(prompt, media=tuple(replace(media, key=media.key + suffix) for media in prompt.media))
