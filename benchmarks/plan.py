"""Planning: how full packs are and how evenly ranks are loaded, time and memory for a million samples, whether opening
an index needs more memory when it is longer, and whether any position is as near as the first. (`make bench-plan`).

The lengths of the plan are synthetic: 55 % videos (lognormal around 35 s), 20 % stills, 25 % text, at the sizes of the
released model. The index is one on disk (`benchmarks.big_index`).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.model.settings import ModelSettings
from arcvideo.planning.cost import pack_cost
from arcvideo.planning.families import cut_families
from arcvideo.planning.plan import Plan
from arcvideo.planning.random_words import permutation, uniforms
from arcvideo.planning.settings import SourceSettings
from arcvideo.planning.table import CLIP_ROW, ITEM_ROW, SourceTable, frame_counts
from arcvideo.planning.visits import draw_visits
from arcvideo.planning.window import WindowPlan
from benchmarks import big_index
from benchmarks.table import Row, report

BUDGET, RANKS, SAMPLES, LATE = 32_768, 8, 1_000_000, 900_000


def synthetic(clips: int, *key: object) -> SourceTable:
    """A realistic mix of lengths at the sizes of the released model, as a table without shards: 55 % videos of about
    35 seconds, 20 % stills, 25 % text, one item each."""
    kind, normal = (
        uniforms(clips, *key, "kind"),
        uniforms(4 * clips, *key, "normal").reshape(4, -1).sum(axis=0) * 3**0.5 - 12**0.5,
    )
    seconds = np.exp(np.log(35) + 0.7 * normal)
    frames = np.select([kind < 0.55, kind < 0.75], [frame_counts(seconds, max_frames=150), 1], 0)
    rows, items = np.zeros(clips, dtype=CLIP_ROW), np.zeros(clips, dtype=ITEM_ROW)
    rows["item_start"], rows["item_count"], rows["row"] = np.arange(clips), 1, np.arange(clips)
    rows["frames"], rows["frame_limit"], rows["both"] = frames, 150, frames > 1
    rows["media_tokens"] = np.where(frames > 0, 2 + 114 * frames, 0)
    items["row"], items["weight"], items["before"] = np.arange(clips), 1.0, 30
    items["branch"] = (20 + 500 * uniforms(clips, *key, "text") ** 2).astype(np.int64)
    return SourceTable(
        name="synthetic",
        settings=SourceSettings(),
        indexes=(),
        clip_rows=rows,
        item_rows=items,
        tasks=("caption",),
        quarantined=(),
        dropped=0,
        shortened=0,
        passes=1.0,
    )


def planned() -> dict[str, float]:
    """In a fresh process: plans a million samples."""
    cost = pack_cost(ModelSettings(), trained=["llm"])
    table = synthetic(SAMPLES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    epoch = Plan([table], seed=0, token_budget=BUDGET, packs_per_step=RANKS, cost=cost).epoch(0)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unordered = epoch.pack_cost[permutation(epoch.packs, "any")]
    return {
        "seconds": seconds,
        "peak_gib": peak / 2**20,
        "own_gib": (peak - before) / 2**20,
        "fill": epoch.tokens / (epoch.packs * BUDGET),
        "balance": epoch.balance(RANKS),
        "token_balance": _balance(epoch, unordered),
        "unpacked": _unpacked(table),
    }


def _balance(epoch: WindowPlan, costs: np.ndarray) -> float:
    """Balance when packs are handed out in any order."""
    turns = costs.reshape(-1, RANKS)
    return float(turns.mean() * len(turns) / turns.max(axis=1).sum())


def _unpacked(table: SourceTable) -> float:
    """Useful share of padded batches of four in random order."""
    families = cut_families(draw_visits(table, seed=0, epoch=0), source=0, budget=BUDGET)
    batches = families.tokens[: SAMPLES // 4 * 4].reshape(-1, 4)
    return float(batches.sum() / (4 * batches.max(axis=1).sum()))


def _in_a_process(*arguments: object) -> dict[str, Any]:
    """What a function of this file or of `big_index` returns, called in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.plan", *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def _planning() -> list[Row]:
    runs = [_in_a_process("planned") for _ in range(2)]
    run = runs[0]
    equal = all(runs[1][name] == run[name] for name in ("fill", "balance"))
    seconds = float(np.median([run["seconds"] for run in runs]))
    return [
        Row(metric="fill of packs (baseline: padded batches of 4)", ours=run["fill"], baseline=run["unpacked"],
            ratio=run["fill"] / 0.995, target=1.0, bound=1 / 0.995, equal=equal),
        Row(metric=f"work balance of {RANKS} ranks, mean / max (baseline: any order)", ours=run["balance"],
            baseline=run["token_balance"], ratio=run["balance"] / 0.99, target=1.0, bound=1 / 0.99, equal=equal),
        Row(metric="seconds to plan 1M samples (baseline: 60 allowed)", ours=seconds, baseline=60.0,
            ratio=60 / seconds, target=1.0),
        Row(metric="GiB at the peak of planning, whole process (baseline: 2 allowed)", ours=run["peak_gib"],
            baseline=2.0, ratio=2 / run["peak_gib"], target=1.0),
    ]  # fmt: skip


def _index(folder: Path) -> list[Row]:
    """Both sizes of an index in fresh processes; the longer one may need 50 MiB more (names, digests, open maps)."""
    looked, listed = (
        [_in_a_process(side, folder, samples)["mib"] for samples in (SAMPLES // 100, SAMPLES)]
        for side in ("looked_at", "listed")
    )
    more, more_listed = looked[1] - looked[0], listed[1] - listed[0]
    first, late = [], []
    for _ in range(3):  # in turn, so that a busy machine hurts both alike
        first.append(_in_a_process("first_batch", folder, SAMPLES, 0))
        late.append(_in_a_process("first_batch", folder, SAMPLES, LATE))
    equal = all(len({run["keys"] for run in runs}) == 1 for runs in (first, late))
    start, end = (float(np.median([run["cpu_seconds"] for run in runs])) for runs in (first, late))
    return [
        Row(metric="MiB that opening and reading 1M samples needs over 10k (baseline: list of dicts)", ours=more,
            baseline=more_listed, ratio=more_listed / max(more, 0.1), target=more_listed / 50.0),
        Row(metric="CPU seconds to the batch of sample 900k of 1M (baseline: of sample 0)", ours=end, baseline=start,
            ratio=start / end, target=1 / 1.2, bound=1.0, equal=equal),
        Row(metric="GiB at the peak to that batch, whole process (baseline: 2 allowed)", ours=late[0]["gib"],
            baseline=2.0, ratio=2 / late[0]["gib"], target=1.0),
    ]  # fmt: skip


def main() -> int:
    """Prints the table and writes results/plan.json."""
    rows = _planning()
    with tempfile.TemporaryDirectory() as folder:
        for samples in (SAMPLES // 100, SAMPLES):
            big_index.write_index(Path(folder), samples=samples)
        rows += _index(Path(folder))
    return report(
        "plan",
        rows,
        notes=[
            "each figure from fresh processes; the two positions in turn, median of three",
            "the index on disk: shards of 10,000 text records, so that no decoding hides the way to them",
        ],
    )


CALLED = {
    "planned": planned,
    "looked_at": big_index.looked_at,
    "listed": big_index.listed,
    "first_batch": big_index.first_batch,
}

if __name__ == "__main__":
    if len(sys.argv) > 1:
        name, *words = sys.argv[1:]
        print(json.dumps(CALLED[name](*map(Path, words[:1]), *map(int, words[1:]))))  # type: ignore[operator]
    else:
        sys.exit(main())
