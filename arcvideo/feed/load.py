"""From a planned family to a rendered one: reads the record and the media, decodes, renders. Any thread may call it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from arcvideo.decoding.cache import FrameCache
from arcvideo.feed.collate import Rendered
from arcvideo.feed.prompts import Prompt
from arcvideo.layout import MediaLayout
from arcvideo.media.audio import fit_waveform, silent_seconds
from arcvideo.media.clip import read_clip, read_request, to_media
from arcvideo.media.errors import MediaError
from arcvideo.media.read import clip_key
from arcvideo.model.special import special_ids
from arcvideo.model.towers.features import feature_key
from arcvideo.planning.families import Family
from arcvideo.planning.settings import DataSettings
from arcvideo.planning.table import SourceTable
from arcvideo.render import render_branch, render_prefix, split_question
from arcvideo.tasks import RecordError, make_pair, make_sample
from arcvideo.types import Clip, Media, Sample

FAILURES = (MediaError, RecordError, OSError)
"""What one bad sample may raise; anything else is our own mistake and stops the run."""


class Features(Protocol):
    """Stored outputs of the frozen towers."""

    def has(self, key: str) -> bool: ...

    def load(self, key: str) -> tuple[Tensor, Tensor]: ...


@dataclass(kw_only=True)
class Loader:
    """How one source is read and rendered; holds the clips decoded last, as their items often come together."""

    table: SourceTable
    settings: DataSettings
    layout: MediaLayout
    tokenizer: Any
    pairs: bool = False
    """Give each item's own and its rejected answer."""
    features: Features | None = None
    cache: FrameCache | None = None
    read: Callable[..., Clip] = read_clip
    """In this process, or `MediaPool.read_clip`."""
    kept_clips: int = 4
    _kept: OrderedDict[str, Media] = field(default_factory=OrderedDict)
    _loading: dict[str, Future[Media]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def rendered(self, family: Family) -> list[Rendered]:
        """The family, ready to be packed.

        Raises:
            MediaError, RecordError, OSError: what makes it unusable.
        """
        samples = self._samples(family.clip, family.items)
        branches = tuple(
            render_branch(sample, tokenizer=self.tokenizer, wording=self.settings.wording) for sample in samples
        )
        if samples[0].media_key is None:
            return [Rendered(prefix=np.empty(0, dtype=np.int64), media=(), samples=samples, branches=branches)]
        media = self.media(family.clip, modality=family.modality, seed=family.seed)
        prefix = render_prefix(
            frame_count=media.frame_count,
            before=split_question(samples[0]).before,
            tokenizer=self.tokenizer,
            layout=self.layout,
        )
        return [Rendered(prefix=prefix, media=(media,), samples=samples, branches=branches)]

    def prompts(self, family: Family) -> list[Prompt]:
        """The family's items as prompts."""
        (rendered,) = self.rendered(family)
        return [
            Prompt(
                prefix_ids=rendered.prefix,
                question_ids=branch.ids[: branch.question_tokens],
                media=rendered.media,
                sample=sample,
                source=self.table.name,
                tags=self._tags(family.clip, item),
                duration=self._seconds(family.clip) if rendered.media else None,
                specials=special_ids(self.tokenizer),
            )
            for item, sample, branch in zip(family.items, rendered.samples, rendered.branches, strict=True)
        ]

    def _samples(self, clip: int, items: tuple[int, ...]) -> tuple[Sample, ...]:
        table = self.table
        index, row = table.place(clip)
        record, key = index.record(row), index.key(row)
        media_key = key if table.media_tokens[clip] else None
        numbers = [int(index.items[table.item_row[item]]["number"]) for item in items]
        samples: list[Sample] = []
        for number in numbers:
            item, about = record["items"][number], {"key": f"{key}/{number}", "style": table.settings.style}
            if self.pairs:
                samples += make_pair(item, media_key=media_key, **about)
            else:
                samples.append(replace(make_sample(item, media_key=media_key, **about), fields=item))
        return tuple(samples)

    def _tags(self, clip: int, item: int) -> tuple[str, ...]:
        index, _ = self.table.place(clip)
        return tuple(index.tagsets[index.items[self.table.item_row[item]]["tagset"]])

    def _seconds(self, clip: int) -> float:
        """Length of the clip, from the index."""
        index, row = self.table.place(clip)
        return float(index.clips[row]["duration"])

    def media(self, clip: int, *, modality: str = "both", seed: int = 0) -> Media:
        """What the towers read of a clip; from the feature store when it is there.

        Raises:
            MediaError, OSError.
        """
        expected = self._expected(clip, modality=modality, seed=seed)
        if self.features is not None and self.settings.frames == "middle" and self.features.has(feature_key(expected)):
            patches, speech = self.features.load(feature_key(expected))
            return replace(expected, patches=patches, speech=speech)
        media = self._decoded(clip, key=expected.key, seed=seed)
        if (media.frame_count, media.seconds) != (expected.frame_count, expected.seconds):
            raise MediaError(
                "corrupt",
                f"{self.table.key(clip)}: {media.frame_count} frames and {media.seconds} s were decoded, the index "
                f"promised {expected.frame_count} and {expected.seconds}",
            )
        return shown(media, modality=modality)

    def _expected(self, clip: int, *, modality: str, seed: int) -> Media:
        """The clip's Media as far as the index knows it, without tensors."""
        table, layout = self.table, self._layout(clip)
        index, number = table.place(clip)
        row = index.clips[number]
        frames, duration, samples = int(table.frames[clip]), float(row["duration"]), int(row["sound_samples"])
        if samples:
            seconds = fit_waveform(
                torch.empty(samples, device="meta"),  # only its length matters
                frame_count=frames,
                video_seconds=duration if row["has_video"] else None,
                max_frames=layout.max_frames,
                max_seconds=layout.max_seconds,
            ).seconds
        else:
            seconds = silent_seconds(
                frame_count=frames, duration=duration, max_frames=layout.max_frames, max_seconds=layout.max_seconds
            )
        request = read_request(
            name="", layout=layout, policy=self.settings.frames, seed=seed, decoder=self.settings.decoder
        )
        key = clip_key(row["digest"].tobytes(), request=request)
        if self.cache is not None:
            key = self.cache.key(key)
        whole = Media(
            key=key, frame_count=frames, seconds=seconds, has_video=bool(row["has_video"]), has_audio=samples > 0
        )
        return shown(whole, modality=modality)

    def _layout(self, clip: int) -> MediaLayout:
        """The layout with the frames that the plan grants this clip."""
        return replace(self.layout, max_frames=int(self.table.frame_limit[clip]))

    def _decoded(self, clip: int, *, key: str, seed: int) -> Media:
        """The clip's media; families of one clip that are loaded at once wait for one decoding of it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            others = self._loading.get(key)
            if others is None:
                mine = self._loading[key] = Future()
        if others is not None:
            return others.result()
        try:
            media = self._stored(clip, key=key, seed=seed)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            with self._lock:
                self._kept[key] = media
                while len(self._kept) > self.kept_clips:
                    self._kept.popitem(last=False)
            mine.set_result(media)
        finally:
            with self._lock:
                del self._loading[key]
        return media

    def _stored(self, clip: int, *, key: str, seed: int) -> Media:
        """From the frame cache, or decoded and written there."""
        media = self.cache.load(key) if self.cache is not None else None
        if media is None:
            media = self._fresh(clip, seed=seed)
            if self.cache is not None:
                media = self.cache.save(key, media)
        return media

    def _fresh(self, clip: int, *, seed: int) -> Media:
        (index, row), layout = self.table.place(clip), self._layout(clip)
        data, sound = index.media_bytes(row)
        decoded = self.read(
            data,
            name=f"{self.table.key(clip)} in {index.shard.name}",
            layout=layout,
            policy=self.settings.frames,
            seed=seed,
            sidecar_audio=sound,
            decoder=self.settings.decoder,
        )
        request = read_request(
            name="", layout=layout, policy=self.settings.frames, seed=seed, decoder=self.settings.decoder
        )
        if decoded.key != clip_key(index.clips[row]["digest"].tobytes(), request=request):
            detail = f"{self.table.key(clip)} in {index.shard.name}: its bytes are not those that were indexed"
            raise MediaError("corrupt", f"{detail}; restore the shard, `arcvideo verify {index.shard}` checks it")
        return to_media(decoded, layout=layout)


def shown(media: Media, *, modality: str) -> Media:
    """The media with the half that `modality` leaves out taken away; the model feeds zeros for it."""
    if modality == "video":
        return replace(media, has_audio=False, mel=None)
    if modality == "audio":
        return replace(media, has_video=False, pixels=None)
    return media
