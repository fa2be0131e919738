"""Start at size: an index of ten and of a hundred million samples in 1,300 and 13,000 shards, and what a rank needs
from nothing to its first batch at the first step and at 90 % of the third epoch (`make bench-scale`; 25 GiB of disk).

The index on disk is real, file by file, and of text alone, so that no decoding hides the way to the batch; only its
texts repeat. Fill and balance are those of a mix of lengths at the sizes of the released model (`benchmarks.plan`), in
tables as large, mapped from files as training maps them.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.feed.source import Source
from arcvideo.model.settings import ModelSettings
from arcvideo.planning.cost import pack_cost
from arcvideo.planning.plan import Plan
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.planning.table import CLIP_ROW, ITEM_ROW, SourceTable, TableWriter
from arcvideo.shards.rows import open_rows, write_rows
from benchmarks import big_index, plan
from benchmarks.table import Row, report

SIZES = (10_000_900, 100_009_000)
PER_SHARD = 7_693
"""Samples of a shard: 100 million are then 13,000 shards."""
BYTES = 260
"""Of a sample on the disk, index and table."""
RANKS = (8, 64)
LATE = (2, 0.9)
"""Epoch, counted from 0, and how far into it."""
BUDGET = 32_768
WINDOWS = 4
"""Windows whose fill and balance are measured: three and an epoch's last."""
DTYPES = {"clips": CLIP_ROW, "items": ITEM_ROW, "by_tokens": np.dtype("<u4")}
_PART = 1 << 20


def settings(shards: Path) -> DataSettings:
    return DataSettings(
        sources={"text": SourceSettings(shards=f"{shards}/*.tar")},
        wording="brief",
        token_budget=BUDGET,
        packs_per_step=RANKS[0],
    )


def first_batch(shards: Path, epoch: int, part: float) -> dict[str, Any]:
    """In a fresh process: from nothing to the batch of one rank at a place of an epoch."""
    opened: Counter[str] = Counter()
    sys.addaudithook(lambda event, about: _note_open(opened, shards, event, about))
    tokenizer = big_index.tokenizer()
    idle = _peak()
    began, worked = time.perf_counter(), time.process_time()
    source = Source(settings(shards), layout=big_index.LAYOUT, tokenizer=tokenizer, seed=0, world=RANKS[0])
    made = time.process_time()
    at_open = opened.total()
    first = source.plan.first_step(epoch)
    step = first + int(part * (source.plan.first_step(epoch + 1) - first))
    data = source.batches(step)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "open_cpu_seconds": made - worked,
        "gib": _peak() / 2**20,
        "idle_gib": idle / 2**20,
        "opens_at_start": at_open,
        "opens": opened.total(),
        "step": step,
        "keys": sum(len(batch.keys) for batch in data.batches),
    }


def _note_open(opened: Counter[str], shards: Path, event: str, about: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(about[0], str | os.PathLike) and str(about[0]).startswith(str(shards)):
        opened[str(about[0])] += 1


def write_mixed(folder: Path, samples: int) -> dict[str, float]:
    """In a fresh process: the table of a realistic mix of lengths, written piece by piece."""
    with write_rows(folder, DTYPES) as rows:
        writer = TableWriter(rows)
        for first in range(0, samples, _PART):
            part = plan.synthetic(min(_PART, samples - first), first)
            part.clip_rows["item_start"] += first
            writer.take(part.clip_rows, part.item_rows, settings=part.settings)
        rows.append("by_tokens", writer.order.order())
    return {"gib": _peak() / 2**20}


def fill_and_balance(folder: Path, ranks: int) -> dict[str, float]:
    """In a fresh process: how full packs are and how evenly ranks are loaded, in some windows of a mapped table."""
    found = open_rows(folder, DTYPES)
    assert found is not None
    table = SourceTable(
        name="synthetic",
        settings=SourceSettings(),
        indexes=(),
        clip_rows=found.rows["clips"],
        item_rows=found.rows["items"],
        by_tokens=found.rows["by_tokens"],
        tasks=("caption",),
        quarantined=(),
        dropped=0,
        shortened=0,
        passes=1.0,
        maps=found.maps,
    )
    cost = pack_cost(ModelSettings(), trained=["llm"])
    began, worked = time.perf_counter(), time.process_time()
    planned = Plan([table], seed=0, token_budget=BUDGET, packs_per_step=ranks, cost=cost)
    last = planned.windows - 1
    wanted = [(0, 0), (0, last // 2), (2, int(last * 0.9)), (2, last)]
    windows = [planned.window(*place) for place in wanted]
    busy = [window.pack_cost.reshape(-1, ranks) for window in windows]
    return {
        "fill": sum(window.tokens for window in windows) / (sum(window.packs for window in windows) * BUDGET),
        "balance": float(
            sum(turns.mean() * len(turns) for turns in busy) / sum(turns.max(axis=1).sum() for turns in busy)
        ),
        "worst_fill": min(window.tokens / (window.packs * BUDGET) for window in windows),
        "worst_balance": min(window.balance(ranks) for window in windows),
        "windows": planned.windows,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "gib": _peak() / 2**20,
    }


def _peak() -> int:
    """Most memory this process has held so far, in KiB, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _in_a_process(*arguments: object, memory: Path) -> dict[str, Any]:
    """What a function of this file returns, called in a fresh process.

    Args:
        arguments: its name, and what it is called with.
        memory: where that process remembers which files it found whole, as in a machine's temporary files.
    """
    command = [sys.executable, "-m", "benchmarks.scale", *map(str, arguments)]
    surroundings = {**os.environ, "TMPDIR": str(memory)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=surroundings)
    found: dict[str, Any] = json.loads(done.stdout)
    print(*arguments, json.dumps(found), file=sys.stderr, flush=True)
    return found


def _started(folder: Path, samples: int) -> list[Row]:
    """What the processes need that start on an index of so many samples."""
    told = f"{samples // 10**6}M"
    memory = folder / "memory"
    memory.mkdir(exist_ok=True)
    shards = folder / f"{samples}"
    if len(list(shards.glob("*.tar.index"))) < samples // PER_SHARD:
        big_index.write_index(folder, samples=samples, per_shard=PER_SHARD)
    shutil.rmtree(shards / ".tables", ignore_errors=True)
    number = len(list(shards.glob("*.tar")))
    made = _in_a_process("first_batch", shards, 0, 0, memory=memory)
    shutil.rmtree(memory)  # another machine, where the table is there but nobody has looked at it
    memory.mkdir()
    fresh = _in_a_process("first_batch", shards, 0, 0, memory=memory)
    runs = {"the first step": (0, 0), f"{LATE[1]:.0%} of epoch {LATE[0] + 1}": LATE}
    rows = [
        _limited(f"{told}: CPU seconds to the first batch, first process on a machine", fresh["cpu_seconds"], 60),
        Row(metric=f"{told}: CPU seconds of the one process that writes the table, once for a data set", baseline=None,
            ours=made["open_cpu_seconds"], ratio=1.0, target=0.0),
        _limited(f"{told}: GiB at its peak, whole process", made["gib"], 1),
        Row(metric=f"{told}: files it opens for each of {number:,} shards", baseline=None,
            ours=made["opens_at_start"] / number, ratio=1.0, target=0.0),
    ]  # fmt: skip
    for place, arguments in runs.items():
        found = [_in_a_process("first_batch", shards, *arguments, memory=memory) for _ in range(3)]
        middle = sorted(found, key=lambda run: run["seconds"])[1]
        rows += [
            _limited(f"{told}: seconds to the batch of {place}", middle["seconds"], 60),
            _limited(f"{told}: CPU seconds to it", middle["cpu_seconds"], 60),
            _limited(f"{told}: GiB at the peak to it, whole process", max(run["gib"] for run in found), 1),
            _limited(f"{told}: files opened at the start for each shard (allowed: 3)",
                     max(run["opens_at_start"] for run in found) / number, 3),
        ]  # fmt: skip
    shutil.rmtree(shards)
    return rows


def _mixed(folder: Path, samples: int) -> list[Row]:
    """Fill and balance of a mix of lengths with so many samples."""
    told, table = f"{samples // 10**6}M", folder / f"mixed-{samples}"
    written = _in_a_process("write_mixed", table, samples, memory=folder)
    rows = [_limited(f"{told}: GiB at the peak of writing a table of mixed lengths", written["gib"], 1)]
    for ranks in RANKS:
        run = _in_a_process("fill_and_balance", table, ranks, memory=folder)
        rows += [
            Row(metric=f"{told}: {what} of {ranks} ranks, {WINDOWS} windows of 3 epochs (allowed: 0.995)",
                ours=run[what], baseline=0.995, ratio=run[what] / 0.995, target=1.0, bound=1 / 0.995)
            for what in ("fill", "balance")
        ]  # fmt: skip
        rows.append(_limited(f"{told}: GiB at the peak of planning them, whole process", run["gib"], 1))
    shutil.rmtree(table)
    return rows


def _limited(metric: str, ours: float, allowed: float) -> Row:
    """A figure that may be at most so large."""
    return Row(metric=metric, ours=ours, baseline=allowed, ratio=allowed / max(ours, 1e-6), target=1.0)


def main(folder: Path) -> int:
    """Prints the table and writes results/scale.json.

    Args:
        folder: for indexes and tables; an index that an interrupted run has left complete is used again.
    """
    free, needed = shutil.disk_usage(folder).free / 2**30, max(SIZES) * BYTES / 2**30
    if free < needed:
        print(f"error: {folder} has {free:.0f} GiB left, {needed:.0f} are needed; give another", file=sys.stderr)
        return 2
    rows = [row for samples in SIZES for part in (_started, _mixed) for row in part(folder, samples)]
    return report(
        "scale",
        rows,
        notes=[
            "the baseline is what is allowed; seconds to a batch are medians of three fresh processes",
            f"shards of {PER_SHARD} text records; one of 8 ranks is measured; files may be in the page cache",
            "opened at the start: until the plan can be asked; what a batch reads is opened when it is read",
        ],
    )


CALLED: dict[str, Callable[..., Any]] = {
    "first_batch": first_batch,
    "write_mixed": write_mixed,
    "fill_and_balance": fill_and_balance,
}

if __name__ == "__main__":
    words = sys.argv[1:]
    if words and words[0] in CALLED:
        print(json.dumps(CALLED[words[0]](Path(words[1]), *map(json.loads, words[2:]))))
    elif words:
        sys.exit(main(Path(words[0])))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            sys.exit(main(Path(scratch)))
