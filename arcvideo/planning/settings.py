"""Settings of the data: plain frozen dataclasses, so that a configuration is checked before torch is imported."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from arcvideo.media.settings import DECODERS, RESIZERS, FrameCacheSettings, MediaLimits
from arcvideo.remote.settings import ShardCacheSettings

STYLES = ("plain", "think", "draft")
LENGTH_WEIGHTINGS = ("token", "sqrt", "sample")
FRAME_POLICIES = ("middle", "random")
WORDINGS = ("arc", "brief")
OVER_BUDGET = ("drop", "error", "fewer_frames")
OVERLAPS = ("refuse", "allow")
UNITS = ("epochs", "tokens")
MODALITIES = ("both", "video", "audio")


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One weighted source of a mixture."""

    shards: str = ""
    """Tar files: a path or URL with {000..011} braces, or a path with * globs."""
    weight: float = 1.0
    """With data.unit=epochs, how many times an epoch passes over this source: 0.5 takes half of its clips, 2.0 takes
    each twice. With data.unit=tokens, its share of the tokens, relative to the other weights."""
    repeat: float | None = None
    """Most passes an epoch makes over this source when data.unit=tokens asks for more; null sets no limit."""
    fraction: float = 1.0
    """Share of the clips that is used at all, the same in every epoch; chosen by their keys, whatever the seed."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Relative weight of each task's items; empty takes every task with weight 1, a task left out is not drawn."""
    tags: list[str] = field(default_factory=list)
    """Only items that carry all of these tags; empty takes all."""
    style: str = "plain"
    """Answer style: plain (the answer), think (`<think>..</think><answer>..</answer>`), or draft (think, with an item's
    `draft` for its answer where it has one)."""
    items_per_clip: int = 8
    """Items drawn per clip and visit, without replacement; they share the clip's prefix. 0 takes all."""
    max_clips: int | None = None
    """Only the first so many clips of the source; null takes all."""
    modality: str = "both"
    """What the model gets of each clip: both, video (sound zeroed) or audio (picture zeroed)."""
    drop_video: float = 0.0
    """Probability that the picture of a visit is zeroed (clips with sound only)."""
    drop_audio: float = 0.0
    """Probability that the sound of a visit is zeroed (clips with a picture only)."""

    def __post_init__(self) -> None:
        _one_of("style", self.style, STYLES)
        _one_of("modality", self.modality, MODALITIES)
        _number("weight", self.weight)
        _number("repeat", 1.0 if self.repeat is None else self.repeat)
        for task, weight in self.tasks.items():
            _number(f"tasks.{task}", weight, zero=True)
        if self.tasks and not any(self.tasks.values()):
            raise ValueError(f"tasks={self.tasks}: one of them needs a weight above 0")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction}: must be above 0 and at most 1")
        if self.items_per_clip < 0:
            raise ValueError(f"items_per_clip={self.items_per_clip}: must be 1 or more, or 0 for all")
        if self.max_clips is not None and self.max_clips < 1:
            raise ValueError(f"max_clips={self.max_clips}: must be 1 or more, or null for all")
        for name in ("drop_video", "drop_audio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be a probability")
        if self.drop_video + self.drop_audio > 1:
            raise ValueError(f"drop_video={self.drop_video}, drop_audio={self.drop_audio}: must sum to at most 1")


@dataclass(frozen=True, kw_only=True)
class QuarantineSettings:
    """How much damage a source may have before the run stops; bad samples are never replaced by others."""

    max_count: int = 100
    """Quarantined clips per source that are tolerated."""
    max_rate: float = 0.05
    """Quarantined share of a source that is tolerated (a single bad clip always is, unless max_count is 0)."""

    def __post_init__(self) -> None:
        if self.max_count < 0 or not 0 <= self.max_rate <= 1:
            raise ValueError("quarantine: max_count must be >= 0 and max_rate in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What a stage reads and how it is packed."""

    sources: dict[str, SourceSettings] = field(default_factory=dict)
    """The mixture: name -> source."""
    unit: str = "epochs"
    """What the sources' weights count: epochs (passes over the source) or tokens (shares of an epoch)."""
    token_budget: int = 2048
    """Tokens of one packed row (one micro-batch of one rank)."""
    packs_per_step: int = 1
    """Packed rows per optimizer step over all ranks; a multiple of the number of ranks."""
    length_weighting: str = "sqrt"
    """Weight of an answer of n tokens: token (1 each, n in total), sqrt (1/sqrt(n) each), sample (1/n each)."""
    frames: str = "middle"
    """Frame of each one-second interval: middle, or random (a new draw each epoch; no feature cache; with a frame cache
    a draw among its candidates)."""
    decoder: str = "pyav"
    """Decoder of the picture: pyav, or torchcodec (an extra; it needs FFmpeg's libraries): the same frames, their
    pixels alike up to rounding. pyav refuses damaged pictures that torchcodec paints over."""
    resize: str = "pillow"
    """Who makes frames of the model's size: pillow (the pixels of the released code), or swscale, straight from what
    the decoder gives, in a third of the time, with other roundings and half the colour resolution throughout: about 1
    level of 255 away on average in a camera's recording, 4 to 7 in noise, and far more at edges of strong colour."""
    wording: str = "arc"
    """Instruction suffixes: arc (the released ones, verbatim) or brief (few tokens, for small models)."""
    over_budget: str = "error"
    """An item that exceeds the budget even alone with its clip: error, drop (counted), or fewer_frames: the clip is
    shown with as many frames as leave room for the longest of its items, each standing for more of its time, and its
    sound is spread over them as that of a clip beyond model.max_num_frame (counted)."""
    min_frames: int = 1
    """An item that would leave its clip fewer frames than this is dropped by fewer_frames, and counted."""
    workers: int = 0
    """Clips decoded at once, each in a process of its own that works ahead; 0 works ahead of nothing: a step's media
    are decoded when the step asks for them, in one process."""
    prefetch_steps: int = 2
    """Optimizer steps prepared ahead when workers > 0; more where those hold fewer clips than there are workers."""
    limits: MediaLimits = field(default_factory=MediaLimits)
    """What one file may cost; a decoding process that goes beyond is replaced, and the file quarantined."""
    frame_cache: FrameCacheSettings = field(default_factory=FrameCacheSettings)
    """Decoded frames kept on disk."""
    shard_cache: ShardCacheSettings = field(default_factory=ShardCacheSettings)
    """Copies of remote shards on disk."""
    index_dir: str | None = None
    """Folder of the shards' indexes and token counts; null keeps them beside the shards, which must be writable."""
    quarantine: QuarantineSettings = field(default_factory=QuarantineSettings)
    """How much damage is tolerated in each source."""
    overlap: str = "refuse"
    """What to do when a source holds a clip of `evaluation.shards`: refuse, or allow."""

    def __post_init__(self) -> None:
        _one_of("data.overlap", self.overlap, OVERLAPS)
        _one_of("data.length_weighting", self.length_weighting, LENGTH_WEIGHTINGS)
        _one_of("data.frames", self.frames, FRAME_POLICIES)
        _one_of("data.unit", self.unit, UNITS)
        _one_of("data.decoder", self.decoder, DECODERS)
        _one_of("data.resize", self.resize, RESIZERS)
        limited = [name for name, source in self.sources.items() if source.repeat is not None]
        if limited and self.unit == "epochs":
            raise ValueError(
                f"data.sources.{limited[0]}.repeat: only data.unit=tokens repeats by itself; set weight instead"
            )
        _one_of("data.wording", self.wording, WORDINGS)
        _one_of("data.over_budget", self.over_budget, OVER_BUDGET)
        for name in ("token_budget", "packs_per_step", "prefetch_steps", "min_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)}: must be at least 1")
        if self.workers < 0:
            raise ValueError(f"data.workers={self.workers}: must be 0 or more")


def _one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value!r}: choose one of {', '.join(allowed)}")


def _number(key: str, value: float, *, zero: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{key}={value:g}: must be a number {'of 0 or more' if zero else 'above 0'}")
