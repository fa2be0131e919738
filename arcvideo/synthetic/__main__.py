"""Make the TinyShorts shards: `arcvideo synthetic --out DIR`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from arcvideo.files import error_line
from arcvideo.lineage.lock import alone_filling
from arcvideo.places import words_from_home
from arcvideo.processes.command import as_command
from arcvideo.progress import counted
from arcvideo.synthetic.settings import TinyShortsSettings
from arcvideo.synthetic.write import write_dataset


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when the data set is there, 2 when the arguments or the directory are wrong."""
    options = _parser().parse_args(words_from_home(arguments))
    try:
        if options.workers < 1:
            raise ValueError(f"--workers {options.workers}: must be at least 1")
        settings = TinyShortsSettings(
            clips=options.clips,
            test_clips=options.test_clips,
            texts=options.texts,
            seed=options.seed,
            clips_per_shard=options.clips_per_shard,
        )
        _make(options.out, settings=settings, workers=options.workers)
    except (ValueError, OSError) as error:
        print(f"arcvideo.synthetic: {error_line(error, folder=options.out)}", file=sys.stderr)
        return 2
    return 0


def _make(out: Path, *, settings: TinyShortsSettings, workers: int) -> None:
    total = settings.clips + settings.test_clips + settings.texts
    started = time.perf_counter()
    with alone_filling(out), counted(what="TinyShorts", total=total, unit="clip") as advance:
        (out / "dataset.json.part").unlink(missing_ok=True)  # one that was killed left it, no stranger
        dataset = write_dataset(out, settings=settings, workers=workers, progress=advance)
    took = f"written in {time.perf_counter() - started:.1f} s" if dataset.written else "already there"
    print(f"{out}: {total} records in {len(dataset.shards)} shards, {took}, digest {dataset.digest[:12]}")


def _parser() -> argparse.ArgumentParser:
    defaults = TinyShortsSettings()
    parser = argparse.ArgumentParser(prog="arcvideo synthetic", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the shards")
    parser.add_argument("--clips", type=int, default=defaults.clips, help="training clips (%(default)s)")
    parser.add_argument("--test-clips", type=int, default=defaults.test_clips, help="held-out clips (%(default)s)")
    parser.add_argument("--texts", type=int, default=defaults.texts, help="records without media (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of all clips (%(default)s)")
    parser.add_argument("--clips-per-shard", type=int, default=defaults.clips_per_shard, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes (%(default)s)")
    return parser


if __name__ == "__main__":
    as_command(main)
