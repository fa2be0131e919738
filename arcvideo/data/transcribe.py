"""`python -m arcvideo.data.shards transcribe`: adds what Whisper hears to records, with times (bootstrapping)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from arcvideo.data.index import ShardIndex, ensure_indexes
from arcvideo.data.members import Group, expand_shards, read_at, read_groups
from arcvideo.data.settings import MediaLayout
from arcvideo.data.shards import Record, write_shards
from arcvideo.media.audio import Whisper
from arcvideo.media.errors import MediaError
from arcvideo.media.pool import MediaPool

_LAYOUT = MediaLayout(image_size=64, mel_bins=80)


def add_transcribe(commands: Any) -> None:
    """Adds the subcommand."""
    text = "add timestamped ASR rows made by Whisper; started again, it goes on behind the last finished shard"
    command = commands.add_parser("transcribe", help=text, description=text)
    command.add_argument("shards", nargs="+", help="tar files, {000..011} braces or * globs")
    command.add_argument("--model", type=Path, required=True, help="checkpoint of openai-whisper, a .pt file")
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(run=_transcribe)


def _transcribe(options: argparse.Namespace) -> int:
    paths = [path for pattern in options.shards for path in expand_shards(pattern)]
    if len({path.name for path in paths}) < len(paths):
        raise ValueError("transcribe: two shards have the same name; give each folder its own --out")
    waiting = [path for path in paths if not _target(path, out=options.out).exists()]
    print(f"{len(paths)} shards, {len(paths) - len(waiting)} done before")
    model = Whisper(options.model) if waiting else None
    for index in ensure_indexes(waiting):
        assert model is not None
        if problems := index.problems():
            print(
                f"{index.shard.name}: {len(problems)} quarantined entries; records without a usable item are left out"
            )
        if len(index.clips):
            write_shards(
                _records(index, model=model),
                out=options.out,
                name=index.shard.stem,
                per_shard=len(index.clips),
                bytes_per_shard=1 << 62,
            )
    return 0


def _target(shard: Path, *, out: Path) -> Path:
    return out / f"{shard.stem}-000000.tar"


def _records(index: ShardIndex, *, model: Whisper) -> Iterator[Record]:
    groups = {group.key: group for group in read_groups(index.shard)[0]}
    with MediaPool() as pool:
        yield from _transcribed(index, groups=groups, listen=partial(_heard, model=model, pool=pool))


def _transcribed(
    index: ShardIndex, *, groups: Mapping[str, Group], listen: Callable[..., list[dict[str, Any]]]
) -> Iterator[Record]:
    for row in tqdm(range(len(index.clips)), desc=index.shard.name, unit="clip", leave=False):
        key = index.key(row)
        members = [member for member in groups[key].members if member.extension != "json"]
        media = {member.extension: read_at(index.shard, offset=member.offset, size=member.size) for member in members}
        content = index.record(row)
        if media:
            content["items"] = [*content["items"], *listen(index, row)]
        yield Record(key=key, content=content, media=media)


def _heard(index: ShardIndex, row: int, *, model: Whisper, pool: MediaPool) -> list[dict[str, Any]]:
    """An item of task asr, or none where nothing is said or can be read."""
    data, sound = index.media_bytes(row)
    try:
        waveform = pool.read_clip(data, name=index.key(row), layout=_LAYOUT, sidecar_audio=sound).waveform
    except MediaError as error:
        print(f"  {index.key(row)}: {error.reason}: {error.detail}")
        return []
    segments = [] if waveform is None else model.segments(waveform)
    text = " ".join(segment["text"] for segment in segments)
    return [{"task": "asr", "answer": text, "segments": segments, "tags": ["transcribed"]}] if text else []
