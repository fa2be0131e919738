"""`python -m arcvideo.data.shards transcribe`: adds what Whisper hears to records, with times (bootstrapping)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arcvideo.layout import MediaLayout
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ShardIndex, ensure_indexes
from arcvideo.shards.write import Record, copies, write_shards

if TYPE_CHECKING:  # these load torch
    from arcvideo.decoding.pool import MediaPool
    from arcvideo.media.audio import Whisper

_LAYOUT = MediaLayout(image_size=64, mel_bins=80)


def add_transcribe(commands: Any) -> None:
    """Add the subcommand."""
    text = "add timestamped ASR rows made by Whisper; started again, it goes on behind the last finished shard"
    command = commands.add_parser("transcribe", help=text, description=text)
    command.add_argument("shards", nargs="+", help="tar files or URLs of them, {000..011} braces or * globs")
    command.add_argument("--model", type=Path, required=True, help="checkpoint of openai-whisper, a .pt file")
    command.add_argument("--out", type=Path, required=True, help="folder of its own for the new shards")
    command.add_argument("--cache", help="folder for copies of remote shards")
    seconds = MediaLimits().deadline_seconds
    command.add_argument("--deadline", type=float, default=seconds, help=f"seconds a file may take ({seconds:g})")
    command.set_defaults(run=_transcribe)


def _transcribe(options: argparse.Namespace) -> int:
    limits = MediaLimits(deadline_seconds=options.deadline)
    cache = ShardCacheSettings(path=options.cache)
    paths = [path for pattern in options.shards for path in expand_shards(pattern, cache=cache)]
    if len({path.name for path in paths}) < len(paths):
        raise ValueError("transcribe: two shards have the same name; give each folder its own --out")
    if options.out.resolve() in {path.parent.resolve() for path in paths}:
        raise ValueError(
            f"--out {options.out}: holds the shards to transcribe; give the new ones a folder of their own"
        )
    waiting = [path for path in paths if not _target(path, out=options.out).exists()]
    print(f"{len(paths)} shards, {len(paths) - len(waiting)} done before")
    from arcvideo.decoding.pool import MediaPool
    from arcvideo.media.audio import Whisper

    model = Whisper(options.model) if waiting else None
    with MediaPool(limits=limits) as pool:
        for index in ensure_indexes(waiting, workers=1):
            assert model is not None
            _transcribe_shard(index, model=model, pool=pool, out=options.out)
    return 0


def _transcribe_shard(index: ShardIndex, *, model: Whisper, pool: MediaPool, out: Path) -> None:
    """Write the new shard; its name tells that it is finished."""
    said = f"{index.shard.name}: "
    if problems := index.problems():
        print(f"{said}{len(problems)} quarantined entries; records without a usable item are left out")
    if not len(index.clips):
        print(f"{said}no usable record, nothing written")
        return
    unheard: list[MediaError] = []
    write_shards(
        _records(index, model=model, pool=pool, unheard=unheard),
        out=out,
        name=index.shard.stem,
        per_shard=len(index.clips),
        bytes_per_shard=1 << 62,
    )
    print(f"{said}{len(index.clips)} records, {len(unheard)} of them could not be heard")
    several = len(np.unique(index.parts["clip"]))
    if several:
        print(f"{said}{several} records with several media got no transcript: it would not say of which it is")
    for error in unheard:
        print(f"  {error.reason}: {error.detail}")


def _target(shard: Path, *, out: Path) -> Path:
    return out / f"{shard.stem}-000000.tar"


def _records(index: ShardIndex, *, model: Whisper, pool: MediaPool, unheard: list[MediaError]) -> Iterator[Record]:
    """Yield the shard's records with what is heard in them; a file that cannot be decoded in time keeps its record."""
    for row, record in copies(index):
        content = dict(record.content)
        # Of several media nobody knows which one a transcript without a question is of.
        if index.clips[row]["sound_samples"] and index.media_count(row) == 1:
            try:
                content["items"] = [*content["items"], *_heard(index, row, model=model, pool=pool)]
            except MediaError as error:
                unheard.append(error)
        yield replace(record, content=content)


def _heard(index: ShardIndex, row: int, *, model: Whisper, pool: MediaPool) -> list[dict[str, Any]]:
    """Return an item of task asr, or none where nothing is said.

    Raises:
        MediaError: the file cannot be decoded, or not in time.
    """
    data, sound = index.media_bytes(row)
    waveform = pool.read_clip(data, name=index.key(row), layout=_LAYOUT, sidecar_audio=sound).waveform
    segments = [] if waveform is None else model.segments(waveform)
    text = " ".join(segment["text"] for segment in segments)
    return [{"task": "asr", "answer": text, "segments": segments, "tags": ["transcribed"]}] if text else []
