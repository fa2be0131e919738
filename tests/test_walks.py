"""How many files a reader meets on the way of a batch: counts that may fall, and rise only on purpose.

`python -m tests.test_walks` prints them, file by file.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from arcvideo.feed.source import Source
from tests.data import build
from tests.rollout.test_source import make_source

PACKAGE = Path(sys.modules["arcvideo"].__file__ or "").parent
Walk = set[tuple[str, str]]
"""(file, function)"""


@contextmanager
def entered() -> Iterator[Walk]:
    """Collect what any thread enters of the package, imports left out; a function's own loops belong to it."""
    seen: Walk = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith("<"):
            seen.add((str(Path(code.co_filename).relative_to(PACKAGE)), code.co_qualname))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def batch_walk(folder: Path) -> Walk:
    """What one step of supervised batches enters in the process that trains, from an opened source on."""
    source = Source(
        build.settings(build.shards(folder), packs_per_step=2), layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=1
    )
    source.batches(0)  # what is made once, such as tables of the fonts, is none of a step's
    with entered() as seen:
        source.batches(1)
    source.close()
    return seen


def rollout_walk() -> Walk:
    """What one step of GRPO enters from given prompts to batches: sampling, rewards, advantages, rows, the model."""
    source = make_source()
    source.batches(0)
    with entered() as seen:
        source.batches(1)
    return seen


def files(walk: Walk) -> list[str]:
    return sorted({file for file, _ in walk})


def test_a_batch_enters_no_more_files_than_it_did(tmp_path: Path) -> None:
    walk = files(batch_walk(tmp_path))
    assert len(walk) <= 32, walk


def test_a_rollout_enters_no_more_files_than_it_did() -> None:
    walk = files(rollout_walk())
    model = [file for file in walk if file.startswith("model/")]
    assert len(walk) - len(model) <= 28, walk
    assert len(model) <= 20, model


def main() -> None:
    """Print both walks."""
    with tempfile.TemporaryDirectory() as folder:
        walks = {"a batch of supervised training": batch_walk(Path(folder)), "a rollout": rollout_walk()}
    for name, walk in walks.items():
        model = {entry for entry in walk if entry[0].startswith("model/")}
        inside = f"{len(files(model))} files and {len(model)} functions in model/"
        print(f"{name}: {len(files(walk))} files and {len(walk)} functions, of them {inside}")
        for file in files(walk):
            print(f"  {file}: {', '.join(sorted(function for place, function in walk if place == file))}")


if __name__ == "__main__":
    main()
