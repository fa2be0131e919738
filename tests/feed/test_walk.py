"""How many files a reader meets on the way of a batch: a count that may fall, and rises only on purpose."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from arcvideo.feed.source import Source
from tests.data import build

PACKAGE = Path(sys.modules["arcvideo"].__file__ or "").parent


@contextmanager
def entered() -> Iterator[set[tuple[str, str]]]:
    """Collect (file, function) of the package that any thread enters, imports left out."""
    seen: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and code.co_name != "<module>":
            seen.add((str(Path(code.co_filename).relative_to(PACKAGE)), code.co_qualname))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def walked(folder: Path) -> set[tuple[str, str]]:
    """What one step of supervised batches enters in the process that trains, from an opened source on."""
    source = Source(
        build.settings(build.shards(folder), packs_per_step=2), layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=1
    )
    source.batches(0)  # what is made once, such as tables of the fonts, is none of a step's
    with entered() as seen:
        source.batches(1)
    source.close()
    return seen


def test_a_batch_enters_no_more_files_than_it_did(tmp_path: Path) -> None:
    files = sorted({file for file, _ in walked(tmp_path)})
    assert len(files) <= 38, files
