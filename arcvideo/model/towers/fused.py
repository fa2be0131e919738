"""From clips to fused tokens: the towers, the merger, the projector, and sound added onto the picture.

Shapes: F frames, S image side, P patches, C mel chunks, M mel bins, W tower width, n tokens of a frame, D text width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from arcvideo.model.families.parts import Parts
from arcvideo.model.settings import ModelSettings
from arcvideo.model.towers.audio import AudioEncoder, pool_rows
from arcvideo.model.towers.features import FeatureStore
from arcvideo.model.towers.media import Towers, grouped, tower_outputs
from arcvideo.types import Media


class ArcVideoMediaMixin:
    """The half of the model that makes tokens of media; the model class holds the modules."""

    settings: ModelSettings
    parts: Parts
    vision_model: Any
    speech_encoder: AudioEncoder
    mlp2: nn.Sequential
    if TYPE_CHECKING:

        @property
        def dtype(self) -> torch.dtype: ...
        @property
        def device(self) -> torch.device: ...

    def encode_vision(self, pixel_values: Tensor) -> Tensor:
        """Return (F, P, W) patches of normalised pixels (F, 3, S, S); without a graph when the tower is frozen.

        Where frames become tokens in groups, pixels are (G, 3, 2, S, S) and patches (G, P, W).
        """
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
            self.parts.add_sound(rows, frames=frames, tokens=visual.shape[1], seconds=count, settings=settings)
            for rows, frames, count in zip(projected, frame_counts, seconds, strict=True)
        ]
        return visual + torch.cat(addends)

    def embed_media(
        self, media: Sequence[Media], *, features: FeatureStore | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Return the fused tokens of all clips in order, (sum of F * n, D).

        The merger and the projector are called exactly once, with or without media: a rank without media neither
        hangs the others nor leaves their parameters without gradients.

        Args:
            media: clips; a missing picture is zero pixel values, a missing sound its own mel.
            features: disk cache of tower outputs, read and filled while both towers are frozen.
            device: where to compute; where the parameters are by default, which offloading keeps elsewhere.
        """
        device = device or self.device
        if not media:
            return self._no_media(device)
        frozen = not (_trainable(self.vision_model.vit) or _trainable(self.speech_encoder))
        patches, speech = tower_outputs(
            media,
            towers=Towers(encode_vision=self.encode_vision, encode_audio=self.encode_audio),
            settings=self.settings,
            features=features if frozen else None,
            device=device,
            dtype=self.dtype,
        )
        fused = self.fuse(
            torch.cat(patches),
            speech,
            frame_counts=[item.frame_count for item in media],
            seconds=[item.seconds for item in media],
        )
        return fused.flatten(0, 1)

    def _no_media(self, device: torch.device) -> Tensor:
        """Return (0, D) that still ties merger and projector to the loss with zero gradients."""
        vision, audio = self.settings.vision, self.settings.audio
        side = vision.force_image_size // vision.patch_size
        patches = torch.zeros(1, side * side, vision.hidden_size, device=device, dtype=self.dtype)
        rows = torch.zeros(1, audio.d_model, device=device, dtype=self.dtype)
        return self.vision_model.perceive(patches)[0, :0] + self.mlp2(rows)[:0]

    def _fused(
        self,
        packed: bool,
        media: Sequence[Media],
        *,
        pixel_values: Tensor | None,
        mels: Tensor | None,
        duration: int | Tensor | None,
        features: FeatureStore | None,
        device: torch.device,
    ) -> Tensor | None:
        """Return fused tokens (N, D), or None when a batch has no media at all."""
        if pixel_values is None and mels is None:
            # Packed rows are training micro-batches: every rank must call the projectors, media or not.
            return self.embed_media(media, features=features, device=device) if packed or media else None
        if pixel_values is None or mels is None or media:
            raise ValueError("give pixel_values and mels together, and no media beside them")
        mels = mels.reshape(-1, self.settings.audio.num_mel_bins, mels.shape[-1])
        whole = len(mels) * self.settings.audio.max_source_positions // 50
        seconds = whole if duration is None else min(int(duration), whole)
        speech = self.encode_audio(mels)
        patches = self.encode_vision(grouped(pixel_values, per=self.settings.kind.frames_per_group))
        return self.fuse(patches, [speech], frame_counts=[len(pixel_values)], seconds=[seconds]).flatten(0, 1)


def _trainable(tower: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in tower.parameters())


def _graph_if_trainable(tower: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Return a context without autograd for a frozen tower."""
    return contextlib.nullcontext() if _trainable(tower) else torch.no_grad()
