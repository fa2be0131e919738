"""Names of benchmarks: ours, a user's own, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcvideo.bench import Bench, BenchItem, read_bench

OWN = '''
from arcvideo.bench import Bench, BenchItem

def reader(folder, options):
    """One question about every file."""
    fields = {"task": "qa", "question": options.get("question", "What?"), "answer": "x"}
    items = [BenchItem(id=path.stem, clip=path, task="qa", fields=fields) for path in sorted(folder.glob("*.mp4"))]
    return Bench(name="own", items=tuple(items), holes=(), source="mine")

NOTHING = 3
'''


def test_a_readers_own_module_is_read_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_bench_reader.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"")
    bench = read_bench("own_bench_reader:reader", tmp_path, question="Who?")
    assert bench == Bench(
        name="own",
        items=(
            BenchItem(
                id="a",
                clip=tmp_path / "a.mp4",
                task="qa",
                fields={"task": "qa", "question": "Who?", "answer": "x"},
            ),
        ),
        holes=(),
        source="mine",
    )
    with pytest.raises(ValueError, match=r"^bench=own_bench_reader:NOTHING: must be a Reader"):
        read_bench("own_bench_reader:NOTHING", tmp_path)


def test_what_no_reader_is_named_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^bench=nothing: no such benchmark.*package\.module:reader"):
        read_bench("nothing", tmp_path)
    with pytest.raises(ValueError, match=r"^bench=no_such_module:reader: cannot be imported"):
        read_bench("no_such_module:reader", tmp_path)
