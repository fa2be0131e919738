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

from arcvideo.decoding.cache import FrameCache, draw, drawn_key
from arcvideo.feed.collate import Rendered
from arcvideo.feed.prompts import Prompt
from arcvideo.layout import MediaLayout
from arcvideo.media.audio import fit_waveform, silent_seconds
from arcvideo.media.clip import read_clip, to_media
from arcvideo.media.errors import MediaError
from arcvideo.media.read import ReadRequest, clip_key, read_request
from arcvideo.model.special import special_ids
from arcvideo.model.towers.features import feature_key
from arcvideo.planning.families import Family
from arcvideo.planning.settings import DataSettings
from arcvideo.planning.table import SourceTable, frame_counts, frame_shares
from arcvideo.remote.links import is_url
from arcvideo.remote.reading import Span
from arcvideo.render import cut_prompt, media_ids, render_branch, render_shared, render_whole, split_question
from arcvideo.shards.members import Unreadable
from arcvideo.tasks import RecordError, make_pair, make_sample
from arcvideo.types import Clip, Media, Sample

FAILURES = (MediaError, RecordError, Unreadable)
"""What one bad sample may raise; anything else is our own mistake and stops the run."""


class Features(Protocol):
    """Stored outputs of the frozen towers."""

    def has(self, key: str) -> bool: ...

    def load(self, key: str) -> tuple[Tensor, Tensor] | None: ...


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
        """Return the family, ready to be packed.

        Raises:
            MediaError, RecordError, OSError: what makes it unusable.
        """
        samples = self._samples(family.clip, family.items)
        about: dict[str, Any] = {"tokenizer": self.tokenizer, "wording": self.settings.wording}
        question = split_question(samples[0])
        media: tuple[Media, ...] = ()
        if samples[0].media_key is not None:
            media = self.all_media(family.clip, modality=family.modality, seed=family.seed)
        frames = [medium.frame_count for medium in media]
        ids = media_ids(frames, tokenizer=self.tokenizer, layout=self.layout)
        if question.later:
            branches = tuple(render_whole(sample, media=ids, **about) for sample in samples)
        else:
            branches = tuple(render_branch(sample, **about) for sample in samples)
        prefix = np.empty(0, dtype=np.int64)
        if media and not question.later:
            prefix = render_shared(question.texts, media=ids, tokenizer=self.tokenizer)
        return [Rendered(prefix=prefix, media=media, samples=samples, branches=branches)]

    def prompts(self, family: Family) -> list[Prompt]:
        """Return the family's items as prompts."""
        (rendered,) = self.rendered(family)
        specials, prompts = special_ids(self.tokenizer), []
        for item, sample, branch in zip(family.items, rendered.samples, rendered.branches, strict=True):
            shared, question_ids = cut_prompt(rendered.prefix, branch, specials=specials)
            prompts.append(
                Prompt(
                    prefix_ids=shared,
                    question_ids=question_ids,
                    media=rendered.media[: len(split_question(sample).texts)],
                    sample=sample,
                    source=self.table.name,
                    tags=self._tags(family.clip, item),
                    duration=self._seconds(family.clip) if rendered.media else None,
                    specials=specials,
                )
            )
        return prompts

    def spans(self, family: Family) -> list[Span]:
        """Return the parts of remote shards that hold the family's media; none of local ones."""
        if not is_url(self.table.settings.shards) or not self.table.media_tokens[family.clip]:
            return []
        index, row = self.table.place(family.clip)
        return [Span(path=index.shard, offset=offset, size=size) for offset, size in index.spans(row)]

    def to_read(self, family: Family) -> list[Span]:
        """Return those that will be read: none where frames or features are stored already."""
        spans = self.spans(family)
        parts = range(len(self._facts(family.clip))) if spans else ()
        about: dict[str, Any] = {"modality": family.modality, "seed": family.seed}
        return [] if all(self._is_here(family.clip, part, **about) for part in parts) else spans

    def _is_here(self, clip: int, part: int, *, modality: str, seed: int) -> bool:
        """Return whether the medium is made without its file."""
        expected = self._expected(clip, part, modality=modality, seed=seed)
        if self.features is not None and self.settings.frames == "middle" and self.features.has(feature_key(expected)):
            return True
        return self.cache is not None and self.cache.has(self._key(clip, part, seed=seed))

    def _samples(self, clip: int, items: tuple[int, ...]) -> tuple[Sample, ...]:
        table = self.table
        index, row = table.place(clip)
        record, key = index.record(row), index.key(row)
        media_key = key if table.media_tokens[clip] else None
        numbers = [int(index.items[table.item_row[item]]["number"]) for item in items]
        samples: list[Sample] = []
        for number in numbers:
            item = record["items"][number]
            about: dict[str, Any] = {
                "key": f"{key}/{number}", "style": table.settings.style, "media_count": index.media_count(row) or 1
            }  # fmt: skip
            if self.pairs:
                samples += make_pair(item, media_key=media_key, **about)
            else:
                samples.append(replace(make_sample(item, media_key=media_key, **about), fields=item))
        return tuple(samples)

    def _tags(self, clip: int, item: int) -> tuple[str, ...]:
        index, _ = self.table.place(clip)
        return tuple(index.tagsets[index.items[self.table.item_row[item]]["tagset"]])

    def _seconds(self, clip: int) -> float:
        """Return length of the clip, from the index."""
        index, row = self.table.place(clip)
        return float(index.clips[row]["duration"])

    def all_media(self, clip: int, *, modality: str = "both", seed: int = 0) -> tuple[Media, ...]:
        """Return what the towers read of each medium of a clip's record; from the feature store when it is there.

        Raises:
            MediaError, OSError.
        """
        return tuple(
            self.media(clip, part=part, modality=modality, seed=seed) for part in range(len(self._facts(clip)))
        )

    def media(self, clip: int, *, part: int = 0, modality: str = "both", seed: int = 0) -> Media:
        """Return what the towers read of one medium.

        Raises:
            MediaError, OSError.
        """
        expected = self._expected(clip, part, modality=modality, seed=seed)
        if self.features is not None and self.settings.frames == "middle":
            stored = self.features.load(feature_key(expected))
            if stored is not None:
                return replace(expected, patches=stored[0], speech=stored[1])
        media = self._decoded(clip, part, expected=expected, seed=seed)
        if (media.frame_count, media.seconds) != (expected.frame_count, expected.seconds):
            raise MediaError(
                "corrupt",
                f"{self.table.key(clip)}: {media.frame_count} frames and {media.seconds} s were decoded, the index "
                f"promised {expected.frame_count} and {expected.seconds}",
            )
        return shown(media, modality=modality)

    def _facts(self, clip: int) -> list[np.void]:
        """Return what the index knows of each medium."""
        index, row = self.table.place(clip)
        return index.media(row)

    def _expected(self, clip: int, part: int, *, modality: str, seed: int) -> Media:
        """Return the medium's Media as far as the index knows it, without tensors."""
        layout, row = self._layout(clip, part), self._facts(clip)[part]
        duration, samples = float(row["duration"]), int(row["sound_samples"])
        frames = int(frame_counts(row["duration"], max_frames=layout.max_frames))
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
        key, slots = self._key(clip, part, seed=seed), self._slots(frames, seed=seed)
        key = key if slots is None else drawn_key(key, slots)
        whole = Media(
            key=key, frame_count=frames, seconds=seconds, has_video=bool(row["has_video"]), has_audio=samples > 0
        )
        return shown(whole, modality=modality)

    def _candidates(self) -> int:
        """Return how many frames of an interval are kept, 0 where each visit decodes its own."""
        drawn = self.cache is not None and self.settings.frames == "random"
        return self.settings.frame_cache.candidates if drawn else 0

    def _slots(self, frames: int, *, seed: int) -> list[int] | None:
        """Return which of the candidates this visit drew; None without any."""
        candidates = self._candidates()
        return draw(seed=seed, intervals=frames, candidates=candidates) if candidates else None

    def _request(self, clip: int, part: int, *, seed: int) -> ReadRequest:
        candidates = self._candidates()
        return read_request(
            name="",
            layout=self._layout(clip, part),
            policy="middle" if candidates else self.settings.frames,
            seed=seed,
            decoder=self.settings.decoder,
            resize=self.settings.resize,
            candidates=candidates,
        )

    def _key(self, clip: int, part: int, *, seed: int) -> str:
        """Return the key of the medium as it is decoded, or of its file in the cache."""
        key = clip_key(self._facts(clip)[part]["digest"].tobytes(), request=self._request(clip, part, seed=seed))
        return key if self.cache is None else self.cache.key(key)

    def _layout(self, clip: int, part: int) -> MediaLayout:
        """Return the layout with the frames that the plan grants this medium."""
        facts, limit = self._facts(clip), int(self.table.frame_limit[clip])
        share = frame_shares([float(medium["duration"]) for medium in facts], limit=limit)[part]
        # What is shown whole is read with the limit of the record, so that it is the same as alone.
        cut = share < frame_counts(facts[part]["duration"], max_frames=limit)
        return replace(self.layout, max_frames=share if cut else limit)

    def _decoded(self, clip: int, part: int, *, expected: Media, seed: int) -> Media:
        """Return the medium; families of one clip that are loaded at once wait for one decoding of it."""
        key = expected.key
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
            media = self._stored(clip, part, expected=expected, seed=seed)
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

    def _stored(self, clip: int, part: int, *, expected: Media, seed: int) -> Media:
        """From the frame cache, or decoded and written there."""
        if self.cache is None:
            return self._fresh(clip, part, seed=seed)
        key, slots = self._key(clip, part, seed=seed), self._slots(expected.frame_count, seed=seed)
        media = self.cache.load(key, slots=slots)
        if media is None:
            media = self.cache.save(key, self._fresh(clip, part, seed=seed), slots=slots)
        return replace(media, key=expected.key)

    def _fresh(self, clip: int, part: int, *, seed: int) -> Media:
        (index, row), request = self.table.place(clip), self._request(clip, part, seed=seed)
        data, sound = index.media_bytes(row, part=part)
        layout = self._layout(clip, part)
        decoded = self.read(
            data,
            name=f"{self.table.key(clip)} in {index.shard.name}",
            layout=layout,
            policy=request.policy,
            seed=seed,
            sidecar_audio=sound,
            decoder=request.decoder,
            resize=request.resize,
            candidates=request.candidates,
        )
        if decoded.key != clip_key(index.media(row)[part]["digest"].tobytes(), request=request):
            detail = f"{self.table.key(clip)} in {index.shard.name}: its bytes are not those that were indexed"
            raise MediaError("corrupt", f"{detail}; restore the shard, `arcvideo verify {index.shard}` checks it")
        return to_media(decoded, layout=layout)


def shown(media: Media, *, modality: str) -> Media:
    """Return the media with the half that `modality` leaves out taken away; the model feeds zeros for it."""
    if modality == "video":
        return replace(media, has_audio=False, mel=None)
    if modality == "audio":
        return replace(media, has_video=False, pixels=None)
    return media
