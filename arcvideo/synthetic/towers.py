"""Pre-training of the tiny model's towers on the truth of training clips (docs/decisions/0002).

The vision tower learns to name what a frame shows in the words of the language model; the audio encoder learns to name
what each pooled row sounds like. The probes are thrown away; what stays is that the answers can be read off the towers.

Shapes: F frames, P patches, C clips, R pooled audio rows, W tower width, D text width, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.towers.media import grouped, normalize_pixels
from arcvideo.progress import watched
from arcvideo.runner.muon import Muon
from arcvideo.synthetic.script import COLORS, DURATION, KINDS, SCREEN_WORDS, SOUNDS, SPOKEN_WORDS, Script
from arcvideo.types import Media

_SHARES = (0.5, 1.0, 2.0, 0.5)
"""Weights of second, colour, kind and text: kinds take longest to tell apart."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A training clip with its truth."""

    script: Script
    media: Media


def train_vision(
    model: ArcVideoForConditionalGeneration, clips: Sequence[Known], *, tokenizer: Any, steps: int, frames: int
) -> float:
    """Train ViT and merger to name second, colours, kinds and text in the decoder's own words; returns the accuracy.

    A cell's token is compared with the word embeddings, which stay as they are (locked-text tuning, arXiv 2111.07991):
    the released recipe, too, starts from a vision tower that its language model can read.

    Args:
        frames: frames per step.
    """
    seen = [clip for clip in clips if clip.media.pixels is not None]
    pixels = torch.cat([clip.media.pixels for clip in seen if clip.media.pixels is not None])
    labels = torch.cat([frame_labels(clip.script) for clip in seen])
    vision, grid, kind = model.vision_model, model.settings.grid, model.settings.kind
    times = [f"00:00:{second:02d}" for second in range(DURATION)]
    words = [_word_vectors(model, names, tokenizer=tokenizer) for names in (times, COLORS, KINDS, SCREEN_WORDS)]
    probes = nn.ModuleList(_Naming(vectors) for vectors in words)

    def loss(_: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(pixels), (frames,))
        shown = normalize_pixels(pixels[rows], dtype=torch.float32).repeat_interleave(kind.frames_per_group, dim=0)
        tokens = vision(grouped(shown, per=kind.frames_per_group))
        inner = tokens[:, 1:-1] if kind.edges else tokens
        cells = inner.unflatten(1, (grid, -1))[:, :, :grid]
        losses, hits = [], []
        for row in range(grid):
            for column in range(grid):
                side = 0 if column < grid / 2 else 1  # the left cells name the left shape
                fields = (0, 1 + 2 * side, 2 + 2 * side, 5)
                for probe, field, share in zip(probes, fields, _SHARES, strict=True):
                    logits, truth = probe(cells[:, row, column]), labels[rows, field]
                    losses.append(share * nnf.cross_entropy(logits, truth))
                    hits.append((logits.argmax(-1) == truth).float().mean())
        return torch.stack(losses).mean(), torch.stack(hits).mean()

    return _train([vision.vit, vision.perceive], probes, loss, steps=steps, what="vision tower")


class _Naming(nn.Module):
    """Logits of each word, and of none of them, for a token (N, D)."""

    words: Tensor

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.register_buffer("words", nnf.normalize(words, dim=-1))
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        named = self.scale * nnf.normalize(tokens, dim=-1) @ self.words.T
        return torch.cat([named, self.none.expand(len(tokens), 1)], dim=-1)


def _word_vectors(model: ArcVideoForConditionalGeneration, words: Sequence[str], *, tokenizer: Any) -> Tensor:
    """Return (words, D): the embedding of each word, with and without the space before it."""
    table = model.get_input_embeddings().weight.detach()
    forms = [[tokenizer.encode(text, add_special_tokens=False)[-1] for text in (word, f" {word}")] for word in words]
    vectors = table[torch.tensor(forms)].mean(1)
    # What all words share says nothing about which one it is.
    return vectors - vectors.mean(0)


def train_audio(model: ArcVideoForConditionalGeneration, clips: Sequence[Known], *, steps: int, per_step: int) -> float:
    """Train the audio encoder to name word and sound of each pooled row; returns the last steps' accuracy."""
    heard = [clip for clip in clips if clip.media.has_audio and clip.media.mel is not None]
    mels = torch.cat([clip.media.mel[:1] for clip in heard if clip.media.mel is not None])
    pooling = model.settings.audio_pooling
    rows = model.settings.audio.max_source_positions // pooling
    labels = torch.stack([row_labels(clip.script, rows=rows, per_second=50 // pooling) for clip in heard])
    width = model.settings.audio.d_model
    probes = nn.ModuleList(nn.Linear(width, size) for size in (len(SPOKEN_WORDS) + 1, len(SOUNDS) + 1))

    def loss(_: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(mels), (per_step,))
        pooled = model.speech_encoder(mels[chosen]).view(per_step, rows, pooling, width).mean(2)
        losses, hits = [], []
        for field, probe in enumerate(probes):
            logits, truth = probe(pooled).flatten(0, 1), labels[chosen, :, field].flatten()
            losses.append(nnf.cross_entropy(logits, truth))
            hits.append((logits.argmax(-1) == truth).float().mean())
        return torch.stack(losses).sum(), torch.stack(hits).mean()

    return _train([model.speech_encoder], probes, loss, steps=steps, what="audio tower")


def frame_labels(script: Script) -> Tensor:
    """Return (F, 6) int64 per second: second, left colour and kind, right colour and kind, text; last class: none."""
    rows = []
    for second in range(script.duration):
        row = [second, len(COLORS), len(KINDS), len(COLORS), len(KINDS), len(SCREEN_WORDS)]
        for shape in script.shapes:
            if shape.start <= second < shape.end:
                column = 0 if shape.x < 0.5 else 1
                row[1 + 2 * column] = COLORS.index(shape.color)
                row[2 + 2 * column] = KINDS.index(shape.kind)
        for word in script.words:
            if word.start <= second < word.end:
                row[5] = SCREEN_WORDS.index(word.text)
        rows.append(row)
    return torch.tensor(rows)


def row_labels(script: Script, *, rows: int, per_second: int) -> Tensor:
    """Return (R, 2) int64: the word and the sound at the middle of each pooled row; the last class is none."""
    labels = torch.tensor([[len(SPOKEN_WORDS), len(SOUNDS)]] * rows)
    for row in range(rows):
        middle = (row + 0.5) / per_second
        for word in script.speech:
            if word.start <= middle < word.end:
                labels[row, 0] = SPOKEN_WORDS.index(word.text)
        for sound in script.sounds:
            if sound.start <= middle < sound.end:
                labels[row, 1] = SOUNDS.index(sound.name)
    return labels


def _train(
    towers: Sequence[nn.Module],
    probes: nn.Module,
    loss: Callable[[int], tuple[Tensor, Tensor]],
    *,
    steps: int,
    what: str,
) -> float:
    matrices, others = split_parameters(*towers, probes)
    optimizers = [Muon(matrices, lr=8e-3), torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)]
    return descend(loss, optimizers=optimizers, steps=steps, what=what)


def descend(
    loss: Callable[[int], tuple[Tensor, Tensor]],
    *,
    optimizers: Sequence[torch.optim.Optimizer],
    steps: int,
    what: str,
) -> float:
    """Minimise `loss(step) -> (loss, accuracy)` with a short warm-up and a linear decay; returns the mean accuracy."""
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    accuracy = 0.0
    for step in watched(range(steps), what=what, total=steps, unit="step"):
        ratio = min(1.0, (step + 1) / 20) * max(0.02, 1 - step / steps)
        for optimizer, lrs in zip(optimizers, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * ratio
        value, hit = loss(step)
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        accuracy += (float(hit) - accuracy) / min(step + 1, 20)
    return accuracy


def split_parameters(*modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return (matrices and convolutions for Muon, everything else); tables that are read by row belong to everything
    else.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            table = "position" in name or "embed_tokens" in name
            (matrices if parameter.ndim >= 2 and not table else others).append(parameter)
    return matrices, others
