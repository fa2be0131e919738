"""A tiny model with the released parameter names, and batches for it."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arcvideo.objectives.loss import Loss
from arcvideo.types import Batch, Media, Segments, StepData

VOCABULARY, WIDTH = 37, 16


class _Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = nn.Linear(3, WIDTH)
        self.perceive = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))


class _Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, embeds: Tensor) -> Tensor:
        for layer in self.layers:
            embeds = embeds + torch.tanh(layer(embeds))
        return self.norm(embeds)


class Tiny(nn.Module):
    """Adds the mean of each clip's picture and sound to every token of the row."""

    def __init__(self, *, seed: int = 0, deaf: bool = False, blind: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.vision_model = _Vision()
        self.speech_encoder = nn.Linear(8, WIDTH)
        self.mlp2 = nn.Linear(WIDTH, WIDTH)
        self.language_model = _Language()
        self.deaf, self.blind = deaf, blind

    def _see(self, media: Media) -> Tensor:
        if media.pixels is None:
            return torch.zeros_like(self.vision_model.vit.bias)
        with torch.no_grad():
            colours = media.pixels.float().div(255).mean(dim=(0, 2, 3))
            return self.vision_model.vit(colours.to(self.vision_model.vit.weight.dtype))

    def _hear(self, media: Media) -> Tensor:
        with torch.no_grad():
            return self.speech_encoder(media.mel.mean(dim=(0, 2)).to(self.speech_encoder.weight.dtype))

    def forward(self, input_ids, position_ids, segments, media, target_positions) -> SimpleNamespace:
        embeds = self.language_model.embed_tokens(input_ids)
        nothing = torch.zeros(1, WIDTH, dtype=embeds.dtype)
        seen = torch.stack([self._see(item) for item in media]) if media else nothing
        heard = torch.stack([self._hear(item) for item in media]) if media else nothing
        weight = float(bool(media))
        picture = self.vision_model.perceive(seen.to(embeds.device)).sum(0) * weight * (not self.blind)
        sound = self.mlp2(heard.to(embeds.device)).sum(0) * weight * (not self.deaf)
        hidden = self.language_model(embeds + picture + sound)
        return SimpleNamespace(logits=self.language_model.lm_head(hidden[target_positions]))


def clip(number: int, *, video: bool = True, audio: bool = True) -> Media:
    """A random clip of two frames of 4 x 4 pixels and one chunk of sound."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (2, 3, 4, 4), generator=generator, dtype=torch.uint8)
    mel = torch.randn((1, 8, 6), generator=generator) if audio else torch.zeros(1, 8, 6)
    return Media(
        key=f"clip-{number}",
        frame_count=2,
        seconds=2,
        has_video=video,
        has_audio=audio,
        pixels=pixels if video else None,
        mel=mel,
    )


def batch(number: int, *, media: tuple[Media, ...] = (), tokens: int = 12) -> Batch:
    """A row of random tokens whose targets are its own next tokens."""
    generator = torch.Generator().manual_seed(1000 + number)
    ids = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    targets = tokens - 1
    return Batch(
        input_ids=ids,
        position_ids=torch.arange(tokens).expand(4, tokens),
        segments=Segments(
            starts=torch.tensor([0, tokens], dtype=torch.int32), parents=torch.tensor([-1], dtype=torch.int32)
        ),
        media=media,
        target_positions=torch.arange(targets),
        target_ids=ids[1:].clone(),
        target_weights=torch.rand(targets, generator=generator) + 0.5,
        target_samples=torch.zeros(targets, dtype=torch.int64),
        keys=(f"sample-{number}",),
        tasks=("qa",),
    )


class Rows:
    """A source: 8 rows a step, dealt to the ranks in turn, with and without media."""

    def __init__(
        self, *, rank: int = 0, ranks: int = 1, rows: int = 8, media: bool = True, poison: int | None = None
    ) -> None:
        self.rank, self.ranks, self.rows, self.media, self.poison = rank, ranks, rows, media, poison

    def batches(self, step: int) -> StepData:
        """This rank's rows of the step."""
        made = []
        for number in range(step * self.rows, (step + 1) * self.rows):
            kinds = [(), (clip(number),), (clip(number, audio=False),), (clip(number, video=False),)]
            row = batch(number, media=kinds[number % 4] if self.media else (), tokens=8 + number % 5)
            if self.poison == step and number % self.rows == 0:
                row.target_weights[0] = float("inf")
            made.append(row)
        return StepData(batches=made[self.rank :: self.ranks])


def cross_entropy(logits: Tensor, batch: Batch) -> Loss:
    """The plain objective."""
    losses = F.cross_entropy(logits.float(), batch.target_ids, reduction="none")
    right = (logits.argmax(-1) == batch.target_ids).float().sum().detach()
    return Loss(total=(losses * batch.target_weights).sum(), metrics={"token_accuracy": (right, float(len(losses)))})
