"""Pre-training of the tiny model's towers on the truth of training clips (docs/decisions/0002).

The ViT learns to name what a frame shows from every quarter of it; the audio encoder learns to name what each pooled row
sounds like. The probes are thrown away; what stays is that the answers can be read off the towers linearly.

Shapes: F frames, P patches, C clips, R pooled audio rows, W tower width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from tqdm import tqdm

from arcvideo.model.media import normalize_pixels
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.muon import Muon
from arcvideo.synthetic.script import COLORS, DURATION, KINDS, SCREEN_WORDS, SOUNDS, SPOKEN_WORDS, Script
from arcvideo.types import Media


@dataclass(frozen=True, kw_only=True)
class Known:
    """A training clip with its truth."""

    script: Script
    media: Media


def train_vision(model: ArcVideoForConditionalGeneration, clips: Sequence[Known], *, steps: int, frames: int) -> float:
    """Train the ViT to name second, colours, kinds and text; returns the last steps' accuracy.

    Args:
        frames: frames per step.
    """
    seen = [clip for clip in clips if clip.media.pixels is not None]
    pixels = torch.cat([clip.media.pixels for clip in seen if clip.media.pixels is not None])
    labels = torch.cat([frame_labels(clip.script) for clip in seen])
    tower = model.vision_model.vit
    width = model.settings.vision.hidden_size
    probes = nn.ModuleList(nn.Linear(width, size) for size in (DURATION, len(COLORS) + 1, len(KINDS) + 1, len(SCREEN_WORDS) + 1))

    def loss(_: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(pixels), (frames,))
        patches = tower(normalize_pixels(pixels[rows], dtype=torch.float32))
        side = int(patches.shape[1] ** 0.5)
        quarters = patches.view(frames, 2, side // 2, 2, side // 2, width).mean((2, 4)).flatten(1, 2)
        losses, hits = [], []
        for quarter in range(4):
            column = quarter % 2  # the left quarters name the left shape
            for probe, field in zip(probes, (0, 1 + 2 * column, 2 + 2 * column, 5), strict=True):
                logits, truth = probe(quarters[:, quarter]), labels[rows, field]
                losses.append(nnf.cross_entropy(logits, truth))
                hits.append((logits.argmax(-1) == truth).float().mean())
        return torch.stack(losses).mean(), torch.stack(hits).mean()

    return _train(tower, probes, loss, steps=steps, what="vision tower")


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

    return _train(model.speech_encoder, probes, loss, steps=steps, what="audio tower")


def frame_labels(script: Script) -> Tensor:
    """(F, 6) int64 per second: second, left colour, left kind, right colour, right kind, text; the last class is none."""
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
    """(R, 2) int64: the word and the sound at the middle of each pooled row; the last class is none."""
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
    tower: nn.Module, probes: nn.Module, loss: Callable[[int], tuple[Tensor, Tensor]], *, steps: int, what: str
) -> float:
    matrices, others = split_parameters(tower, probes)
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
    bar = tqdm(range(steps), desc=what, unit="step", disable=None)
    for step in bar:
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
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(value):.3f}", accuracy=f"{accuracy:.3f}")
    return accuracy


def split_parameters(*modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices and convolutions for Muon, everything else); tables that are read by row belong to everything else."""
    matrices, others = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            table = "position" in name or "embed_tokens" in name
            (matrices if parameter.ndim >= 2 and not table else others).append(parameter)
    return matrices, others
