"""The way to a sample beside Mosaic Streaming and Megatron Energon, on the same records (`make bench-peers`).

A job that starts, and one that goes on in the middle of the first epoch, in a fresh process each: from the packages
imported to the first sample of text. Ours and Energon read the very same tar files, Mosaic the same records in its own
format; each side's preparation (our index and token counts, its `prepare`, its `MDSWriter`) is done before. We come to
a whole packed batch of one rank of eight, rendered and counted; they come to one sample as it was written.

The others are not among the requirements: install `mosaicml-streaming` and `megatron-energon` into an environment that
has the requirements too, and name its interpreter with PEERS=.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from arcvideo.feed.source import Source
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.shards.write import Record, write_shards
from benchmarks import big_index
from benchmarks.table import Row, report

SHARDS, PER_SHARD = 20, 2_000
SAMPLES = SHARDS * PER_SHARD
MIDDLE = SAMPLES // 2
ROUNDS = 3
RANKS = 8
FOLLOWING = 16
"""Samples behind a place that a job which goes on there is compared by."""
PEERS = {"mosaic": "mosaicml-streaming", "energon": "megatron-energon"}


def records() -> Iterator[Record]:
    for number in range(SAMPLES):
        words = 1 + number * 7919 % 97
        item = {"task": "caption", "answer": f"{number} " + "a red circle " * words}
        yield Record(key=f"{number:08d}", content={"items": [item]}, media={})


def prepare_ours(folder: Path) -> dict[str, Any]:
    """Write the shards and what training keeps of them."""
    write_shards(records(), out=folder / "tar", per_shard=PER_SHARD)
    _source(folder)
    return {}


def prepare_mosaic(folder: Path) -> dict[str, Any]:
    _without_torchvision()
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"key": "str", "json": "bytes"}) as writer:
        for path in sorted((folder / "tar").glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    writer.write({"key": member.name.partition(".")[0], "json": file.read()})
    return {}


def prepare_energon(folder: Path) -> dict[str, Any]:
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    names = sorted(path.name for path in (folder / "tar").glob("*.tar"))
    WebdatasetPreparator.prepare_dataset(
        folder / "tar", names, split_parts_ratio=[("train", 1.0), ("val", 0.0), ("test", 0.0)], workers=2
    )
    text = "sample_type:\n  __module__: megatron.energon\n  __class__: TextSample\nfield_map:\n  text: json\n"
    (folder / "tar" / ".nv-meta" / "dataset.yaml").write_text(text, encoding="utf-8")
    loader = _energon(folder)
    for _ in islice(iter(loader), MIDDLE):
        pass
    (folder / "energon.state").write_bytes(pickle.dumps(loader.save_state_rank()))
    return {}


def ours(folder: Path, place: int) -> dict[str, Any]:
    """In a fresh process: the keys of the first batch at a place of the epoch, in samples."""
    began, worked = time.perf_counter(), time.process_time()
    source = _source(folder)
    step = int(source.plan.first_step(1) * place / SAMPLES)
    keys = [key for batch in source.batches(step).batches for key in batch.keys]
    return _told(began, worked, keys=[str(key) for key in keys[:FOLLOWING]])


def ours_straight(folder: Path, place: int) -> dict[str, Any]:
    """The same of a job that plans all steps before."""
    source = _source(folder)
    step = int(source.plan.first_step(1) * place / SAMPLES)
    for before in range(step):
        source.plan.step(before)
    keys = [key for batch in source.batches(step).batches for key in batch.keys]
    return {"keys": [str(key) for key in keys[:FOLLOWING]]}


def mosaic(folder: Path, place: int) -> dict[str, Any]:
    _without_torchvision()
    from streaming import StreamingDataLoader, StreamingDataset

    began, worked = time.perf_counter(), time.process_time()
    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=1)
    loader = StreamingDataLoader(dataset, batch_size=1)
    if place:
        loader.load_state_dict(dataset.state_dict(place, True))
    samples = iter(loader)
    first = next(samples)
    told = _told(began, worked)
    return told | {"keys": [sample["key"][0] for sample in (first, *islice(samples, FOLLOWING - 1))]}


def mosaic_straight(folder: Path, place: int) -> dict[str, Any]:
    """The same of a job that reads all samples before."""
    _without_torchvision()
    from streaming import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=1)
    samples = islice(iter(StreamingDataLoader(dataset, batch_size=1)), place, place + FOLLOWING)
    return {"keys": [sample["key"][0] for sample in samples]}


def energon(folder: Path, place: int) -> dict[str, Any]:
    import megatron.energon  # noqa: F401 - its import is not part of the time

    began, worked = time.perf_counter(), time.process_time()
    loader = _energon(folder)
    if place:
        loader.restore_state_rank(pickle.loads((folder / "energon.state").read_bytes()))
    samples = iter(loader)
    first = next(samples)
    told = _told(began, worked)
    return told | {"keys": [_energon_key(sample) for sample in (first, *islice(samples, FOLLOWING - 1))]}


def energon_straight(folder: Path, place: int) -> dict[str, Any]:
    """The same of a job that reads all samples before."""
    samples = islice(iter(_energon(folder)), place, place + FOLLOWING)
    return {"keys": [_energon_key(sample) for sample in samples]}


def versions(_: Path) -> dict[str, Any]:
    return {package: version(package) for package in PEERS.values()}


def _source(folder: Path) -> Source:
    settings = DataSettings(
        sources={"text": SourceSettings(shards=f"{folder}/tar/*.tar")},
        wording="brief",
        token_budget=32_768,
        packs_per_step=RANKS,
    )
    return Source(settings, layout=big_index.LAYOUT, tokenizer=big_index.tokenizer(), seed=0, world=RANKS)


def _energon(folder: Path) -> Any:
    from megatron.energon import WorkerConfig, get_savable_loader, get_train_dataset

    dataset = get_train_dataset(
        str(folder / "tar"), split_part="train", batch_size=None, shuffle_buffer_size=100,
        max_samples_per_sequence=100, worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
    )  # fmt: skip
    return get_savable_loader(dataset)


def _energon_key(sample: Any) -> str:
    return str(sample.__key__).rpartition("/")[2]


def _told(began: float, worked: float, **more: Any) -> dict[str, Any]:
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **more,
    }


def _without_torchvision() -> None:
    """Let Mosaic be imported where torchvision is not: its data sets of pictures, unused here, derive from it."""
    if "torchvision" in sys.modules:
        return
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        module = types.ModuleType(f"torchvision{name}")
        module.__spec__ = ModuleSpec(module.__name__, None)
        vars(module).update(VisionDataset=object, CIFAR10=object, to_tensor=None, __path__=[])
        sys.modules[module.__name__] = module


CALLED: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (prepare_ours, prepare_mosaic, prepare_energon, ours, ours_straight, mosaic, mosaic_straight,
                     energon, energon_straight, versions)
}  # fmt: skip


def _in_a_process(python: str, *arguments: object) -> dict[str, Any]:
    """What a function of this file returns, called in a fresh process."""
    command = [python, "-m", "benchmarks.peers", "--call", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shown = {name: value for name, value in found.items() if name != "keys"}
    print(*arguments, json.dumps(shown), file=sys.stderr, flush=True)
    return found


def main(python: str, folder: Path) -> int:
    """Prints the table and writes results/peers.json.

    Args:
        python: interpreter that has the other packages too.
        folder: for the files of all sides; what an interrupted run has prepared there is used again.
    """
    try:
        names = _in_a_process(python, "versions", folder)
    except subprocess.CalledProcessError:
        print(f"error: {python} has not {' and '.join(PEERS.values())}; name one that has: PEERS=", file=sys.stderr)
        return 2
    for side in ("ours", *PEERS):
        done = folder / f"{side}.prepared"
        if not done.exists():
            _in_a_process(python, f"prepare_{side}", folder)
            done.touch()
    rows = []
    for told, place in (("first sample", 0), (f"going on at sample {MIDDLE:,}", MIDDLE)):
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in ("ours", *PEERS)}
        for number in range(ROUNDS + 1):
            for side, found in runs.items():  # in turn, so that a busy machine hurts all alike
                run = _in_a_process(python, side, folder, place)
                found += [run] if number else []
        straight = {side: _in_a_process(python, f"{side}_straight", folder, place)["keys"] for side in runs}
        equal = all(run["keys"] == straight[side] for side, found in runs.items() for run in found)
        for what, unit in (("seconds", "s"), ("cpu_seconds", "CPU s"), ("gib", "GiB at the peak, whole process")):
            middle = {side: statistics.median(run[what] for run in found) for side, found in runs.items()}
            for side in PEERS:
                ratios = [there[what] / here[what] for here, there in zip(runs["ours"], runs[side], strict=True)]
                rows.append(
                    Row(
                        metric=f"{told}, {unit} (baseline: {side})", ours=middle["ours"], baseline=middle[side],
                        ratio=statistics.median(ratios), target=0.5, equal=equal, spread=(min(ratios), max(ratios)),
                    )
                )  # fmt: skip
    return report(
        "peers",
        rows,
        notes=[
            f"{SAMPLES:,} records of text in {SHARDS} tar files, read by ours and by Energon; Mosaic has them in files "
            f"of its own; {', '.join(f'{name} {number}' for name, number in names.items())}",
            "fresh processes in turn, packages imported before the clock starts; each side's preparation is done "
            "before",
            "not the same job: we come to a packed, rendered batch of one rank of 8, in an order that packs are filled "
            "and ranks are balanced in; they come to one sample, Energon's from a shuffle buffer of 100",
            "equal: every job goes on with the samples that one of the same side, which was not interrupted, comes to",
        ],
    )


if __name__ == "__main__":
    words = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    words.add_argument("--python", default=sys.executable, help="interpreter that has the other packages")
    words.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    words.add_argument("--call", nargs="+", help=argparse.SUPPRESS)
    options = words.parse_args()
    if options.call:
        name, where, *places = options.call
        print(json.dumps(CALLED[name](Path(where), *map(int, places))))
    elif options.folder:
        sys.exit(main(options.python, options.folder))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            sys.exit(main(options.python, Path(scratch)))
