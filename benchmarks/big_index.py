"""An index of as many samples as one likes, for `benchmarks.plan`: one real shard of text records, its tar linked under
many names, and a copy of its index with keys of its own beside each. Everything that training reads is there; only the
texts repeat.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.feed.source import Source
from arcvideo.layout import MediaLayout
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ensure_indexes, index_folder
from arcvideo.shards.lengths import all_lengths
from arcvideo.shards.seal import sealed
from arcvideo.shards.write import Record, write_shards

PER_SHARD = 10_000
RANKS = 8
LAYOUT = MediaLayout(image_size=64, mel_bins=80)
LOOKS = 1000


def tokenizer() -> Any:
    """Of the records' words."""
    return build_tiny_tokenizer(["a red circle appears, moves and vanishes 0123456789"])


def write_index(folder: Path, *, samples: int, per_shard: int = PER_SHARD) -> Path:
    """Shards of so many samples each, indexed, their tokens counted; returns their folder.

    Every shard but the first has files of an index that nobody synced: they are there to be read once.
    """
    shards = folder / f"{samples}"
    first = write_shards(_records(per_shard), out=shards, per_shard=per_shard)[0]
    (index,) = ensure_indexes([first], progress=False)
    all_lengths([index], tokenizer=tokenizer(), style="plain", wording="brief", progress=False)
    keys = np.array(index.keys).reshape(per_shard, -1)  # equally long ones
    for number in range(1, samples // per_shard):
        shard = shards / f"shard-{number:06d}.tar"
        os.link(first, shard)
        shutil.copytree(index.folder, index_folder(shard))
        keys[:, :5] = np.frombuffer(f"{number:05d}".encode(), dtype=np.uint8)
        np.save(index_folder(shard) / "keys.npy", keys.ravel())
        text = (index_folder(shard) / "keys.npy").read_bytes()
        files = {**index.meta["files"], "keys.npy": {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}}
        meta = {**index.meta, "digest": f"{number:064x}", "files": files}
        (index_folder(shard) / "meta.json").write_text(sealed(meta), encoding="utf-8")
    return shards


def _records(count: int) -> Iterator[Record]:
    for number in range(count):
        words = 1 + number * 7919 % 97
        item = {"task": "caption", "answer": "a red circle " * words}
        yield Record(key=f"00000-{number:05d}", content={"items": [item]}, media={})


def looked_at(folder: Path, samples: int) -> dict[str, float]:
    """Opens the index and reads keys, lengths and records from all over it. Peak memory of this, in MiB."""
    paths = expand_shards(f"{folder}/{samples}/*.tar")
    counter = tokenizer()
    before = _peak()
    indexes = ensure_indexes(paths, progress=False)
    lengths = all_lengths(indexes, tokenizer=counter, style="plain", wording="brief", progress=False)
    found = 0
    for place in range(0, samples, samples // LOOKS):
        shard, row = divmod(place, PER_SHARD)
        assert indexes[shard].key(row) == f"{shard:05d}-{row:05d}"
        assert indexes[shard].record(row)["items"]
        found += int(lengths[shard].rows["branch"][row] > 0)
    assert found == LOOKS
    return {"mib": (_peak() - before) / 2**10}


def listed(folder: Path, samples: int) -> dict[str, float]:
    """The other side: the same facts as a list of dicts, as a manifest in JSON lines is held."""
    before = _peak()
    indexes = ensure_indexes(expand_shards(f"{folder}/{samples}/*.tar"), progress=False)
    names = ("json_offset", "json_size", "media_offset", "media_size", "duration", "has_video", "sound_samples")
    manifest = [
        {"key": index.key(row), "shard": index.shard.name, **dict(zip(names, clip, strict=True))}
        for index in indexes
        for row, clip in enumerate(index.clips[list(names)].tolist())
    ]
    assert len(manifest) == samples
    return {"mib": (_peak() - before) / 2**10}


def first_batch(folder: Path, samples: int, position: int) -> dict[str, float | str]:
    """From nothing to the batches of the step that holds the sample at a position of the epoch's order."""
    settings = DataSettings(
        sources={"text": SourceSettings(shards=f"{folder}/{samples}/*.tar")},
        wording="brief",
        token_budget=32_768,
        packs_per_step=RANKS,
    )
    counter = tokenizer()
    began, worked = time.perf_counter(), time.process_time()
    source = Source(settings, layout=LAYOUT, tokenizer=counter, seed=0)
    pack = int(np.searchsorted(source.plan.epoch(0).pack_start, position, side="right")) - 1
    batches = source.batches(pack // RANKS).batches
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "gib": _peak() / 2**20,
        "keys": hashlib.sha256(repr([batch.keys for batch in batches]).encode()).hexdigest(),
    }


def _peak() -> int:
    """Most memory this process has held so far, in KiB, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
