"""The nouns that travel between rooms: Clip, Turn, Sample, Media, Segments, Batch, StepData.

Shapes use: F frames, S image side, N waveform samples, C mel chunks, M mel bins, L tokens of a packed row,
G segments, T target tokens, P patches of a frame, W width of a tower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # planning and preflight read these types without seconds of loading torch
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Decoded media with their times; either half may be absent."""

    key: str
    """Content id: equal keys mean equal tensors (sha256 of the media bytes and of the sampling policy)."""
    frames: Tensor | None
    """(F, 3, S, S) uint8 RGB, stamped with their time and resized; None when there is no picture."""
    frame_times: Tensor
    """(F, 2) float32, seconds: the interval [start, end) each frame stands for; also set when frames is None."""
    waveform: Tensor | None
    """(N,) float32 in [-1, 1], mono 16 kHz; None when there is no sound."""
    duration: float
    """Seconds, from the container."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question and its answer. `question` may contain media tags, `<video>`, each where a medium stands."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation about the media of a record, as a Task made it."""

    key: str
    """Unique inside a data set: `<record key>/<item number>`."""
    task: str
    """Name in `arcvideo.tasks.TASKS`."""
    turns: tuple[Turn, ...]
    media_key: str | None
    """Record whose media the turns talk about; None for text only."""
    media_count: int = 1
    """Media of that record: clips, pictures and sounds, in the order in which the turns show them."""
    truth: Mapping[str, Any] = field(default_factory=dict)
    """What rewards and metrics compare with: `letter`, `span` (start, end) in seconds, `text`, ..."""
    instruction: str = "none"
    """Which instruction suffix the question ends with: `none`, or one of `arcvideo.tasks.fields`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The item of the record as it stands there, for rewards; what trains does not read it."""

    @property
    def instructed(self) -> bool:
        """Whether an instruction suffix asks for the answer format."""
        return self.instruction != "none"


@dataclass(frozen=True, kw_only=True)
class Media:
    """What the two towers read for one clip; an absent half is all zeros of the right shape (paper 3.2.2).

    Either `pixels` and `mel` are given, or their tower outputs `patches` and `speech` (a feature-cache hit).
    """

    key: str
    frame_count: int
    """F: frames, which is also the number of groups of audio rows (the fusion rule): one a second, or as many as
    max_num_frame or the plan grants, each standing for more than a second."""
    seconds: int
    """Seconds of audio that count: whole seconds, at least 1."""
    has_video: bool
    has_audio: bool
    pixels: Tensor | None = None
    """(F, 3, S, S) uint8; None when has_video is False or patches is given."""
    mel: Tensor | None = None
    """(C, M, 2 * max_source_positions) float32 log-mel; None when speech is given. Silence has its own mel."""
    patches: Tensor | None = None
    """(F, P, W) float32 output of the frozen ViT."""
    speech: Tensor | None = None
    """(C, max_source_positions, W) float32 output of the frozen audio encoder."""


@dataclass(frozen=True, kw_only=True)
class Segments:
    """How one packed row is cut. A token sees its own segment causally, and all of the segment's parent.

    Parents have no parents themselves and stand before their children.
    """

    starts: Tensor
    """(G + 1,) int32 cumulative lengths; starts[0] = 0, starts[-1] = L."""
    parents: Tensor
    """(G,) int32 index of the parent segment, -1 for none."""

    @property
    def count(self) -> int:
        return int(self.parents.numel())

    def to(self, device: torch.device | str) -> Segments:
        return Segments(starts=self.starts.to(device), parents=self.parents.to(device))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One packed row: the micro-batch of one rank.

    Targets are a table, not shifted labels: the last token of a shared prompt predicts the first token of each
    of its branches, so one position may have several targets.
    """

    input_ids: Tensor
    """(L,) int64, newline ids already replaced by the image id."""
    position_ids: Tensor
    """(4, L) int64: index, column, row, frame, restarting per segment at its parent's end."""
    segments: Segments
    media: tuple[Media, ...]
    """In the order in which their image tokens stand in the row."""
    target_positions: Tensor
    """(T,) int64: the position whose hidden state predicts the target."""
    target_ids: Tensor
    """(T,) int64."""
    target_weights: Tensor
    """(T,) float32; the loss is sum(weight * loss) over sum(weight), both over all ranks and micro-batches."""
    target_samples: Tensor
    """(T,) int64: index into `keys`."""
    keys: tuple[str, ...]
    """Sample keys, in order of their first target."""
    tasks: tuple[str, ...]
    """Task of each sample."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """What an objective needs beyond targets; GRPO: `advantages` (samples,), `old_logprobs` and `ref_logprobs` (T,)."""

    def to(self, device: torch.device | str) -> Batch:
        """Move all tensors; media stay where they are, the model moves what it reads. Itself when nothing moves."""
        names = ("input_ids", "position_ids", "target_positions", "target_ids", "target_weights", "target_samples")
        held = (self.segments.starts, self.segments.parents, *(getattr(self, name) for name in names))
        if all(tensor.to(device) is tensor for tensor in (*held, *self.extra.values())):
            return self
        moved = {name: getattr(self, name).to(device) for name in names}
        extra = {name: value.to(device) for name, value in self.extra.items()}
        return replace(self, segments=self.segments.to(device), extra=extra, **moved)


Counts = dict[str, dict[str, int]]
"""Kind (planned, seen, quarantined) -> data source -> items."""


@dataclass(frozen=True, kw_only=True)
class StepData:
    """What one rank gets for one optimizer step: the batches, and everything that is told about them."""

    batches: list[Batch]
    """Micro-batches; as many on every rank."""
    counts: Counts = field(default_factory=dict)
    """Items that this rank was handed at this step. Completions that are used again are not counted again."""
    lost: tuple[str, ...] = ()
    """Record keys of this rank's clips that could not be read."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Name -> value over all ranks, the same on every rank; reported as `train/<name>`."""
    samples: Sequence[Mapping[str, Any]] = ()
    """Rows to show in a table, JSON-able."""
    notes: tuple[str, ...] = ()
    """Lines for a person."""


def summed(parts: Iterable[Counts]) -> Counts:
    """Return the counts of several ranks or steps together."""
    total: Counts = {}
    for part in parts:
        for kind, sources in part.items():
            row = total.setdefault(kind, {})
            for name, count in sources.items():
                row[name] = row.get(name, 0) + count
    return total


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Return what the model's forward reads of a batch."""
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "segments": batch.segments,
        "media": batch.media,
        "target_positions": batch.target_positions,
    }
