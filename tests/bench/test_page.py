"""docs/benchmarks.md: its example of a reader works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arcvideo.bench import read_bench
from tests.bench.layouts import clip, put

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_the_reader_of_the_page_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"`my_bench.py`:\n```python\n(.*?)```", PAGE, re.DOTALL)
    name = "my_bench_of_the_page"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "doors"
    clip(folder / "clips/a.mp4")
    row = {"name": "one", "file": "a.mp4", "opens": [0.5, 1.0], "seconds": 2.0}
    put(
        folder / "doors.json",
        [row, row | {"name": "two", "opens": [3.0, 4.0]}, row | {"name": "three", "file": "b.mp4"}],
    )
    bench = read_bench(f"{name}:DOORS", folder)
    assert [(item.id, item.fields["span"]) for item in bench.items] == [("one", [0.5, 1.0])]
    assert [(hole.id, hole.reason) for hole in bench.holes] == [("two", "span_outside"), ("three", "no_media")]
    (folder / "doors.json").unlink()
    with pytest.raises(ValueError, match=r"doors\.json is missing; wanted: doors\.json beside clips/"):
        read_bench(f"{name}:DOORS", folder)
