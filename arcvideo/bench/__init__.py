"""Readers of public benchmarks: from the folder that a benchmark is downloaded to, to questions about clips.

A reader is one file and one row of `BENCHES`; an entry point or `package.module:reader` names a user's own.
"""

from __future__ import annotations

from pathlib import Path

from arcvideo.bench.item import Bench, BenchHole, BenchItem, Reader
from arcvideo.bench.readers.activitynet import ACTIVITYNET
from arcvideo.bench.readers.charades_sta import CHARADES_STA
from arcvideo.bench.readers.daily_omni import DAILY_OMNI
from arcvideo.bench.readers.mvbench import MVBENCH
from arcvideo.bench.readers.own import OWN
from arcvideo.bench.readers.qvhighlights import QVHIGHLIGHTS
from arcvideo.bench.readers.shortvid import SHORTVID
from arcvideo.bench.readers.timelens import TIMELENS
from arcvideo.bench.readers.tinyshorts import TINYSHORTS
from arcvideo.bench.readers.vcr_bench import VCR_BENCH
from arcvideo.bench.readers.video_holmes import VIDEO_HOLMES
from arcvideo.bench.readers.video_mme import VIDEO_MME
from arcvideo.bench.readers.worldsense import WORLDSENSE
from arcvideo.named import brought, imported, path_of
from arcvideo.structured import nearest

BENCHES: dict[str, Reader] = {
    "shortvid-bench": SHORTVID,
    "charades-sta": CHARADES_STA,
    "activitynet-captions": ACTIVITYNET,
    "qvhighlights": QVHIGHLIGHTS,
    "timelens-bench": TIMELENS,
    "mvbench": MVBENCH,
    "video-mme": VIDEO_MME,
    "vcr-bench": VCR_BENCH,
    "video-holmes": VIDEO_HOLMES,
    "daily-omni": DAILY_OMNI,
    "worldsense": WORLDSENSE,
    "tinyshorts": TINYSHORTS,
    "own": OWN,
}
"""Name -> reader."""

__all__ = ["BENCHES", "Bench", "BenchHole", "BenchItem", "Reader", "find_reader", "read_bench"]


def find_reader(name: str) -> Reader:
    """Return the reader of that name: ours, an entry point `arcvideo.benchmarks`, or `package.module:reader`.

    A user's own is a `Reader`, or a function of a folder and options that returns a `Bench`.

    Raises:
        ValueError: it is unknown or cannot be imported.
    """
    if name in BENCHES:
        return BENCHES[name]
    path = path_of(name, kind="benchmarks")
    if not path:
        names = [*BENCHES, *brought("benchmarks")]
        raise ValueError(
            f"bench={name}: no such benchmark{nearest(name, names)}; there are: {', '.join(names)}, "
            "or your own package.module:reader"
        )
    reader = imported(path, what=f"bench={name}:")
    if isinstance(reader, Reader):
        return reader
    if callable(reader):
        return Reader(read=reader)
    raise ValueError(f"bench={name}: must be a Reader or a function (folder, options) -> Bench, got {reader!r}")


def read_bench(name: str, folder: Path, **options: str) -> Bench:
    """Return a benchmark as it lies in a folder.

    Args:
        name: a key of `BENCHES`, or `package.module:reader`.
        folder: what the benchmark was downloaded to.
        options: of that reader.

    Raises:
        ValueError: an unknown name or option, or an incomplete folder; one line that says what is missing.
    """
    reader = find_reader(name)
    checked = bool(reader.options) or name in BENCHES  # a plain function of a user's own says no names
    for option in options if checked else ():
        if option not in reader.options:
            close, choices = nearest(option, list(reader.options)), ", ".join(reader.options) or "none"
            raise ValueError(f"bench={name}: no option {option}{close}; there are: {choices}")
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(f"bench={name}: no folder {folder}; wanted: {reader.layout or 'the folder of the benchmark'}")
    return reader.read(folder, options)
