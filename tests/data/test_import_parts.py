"""Files that are read a part at a time: long lists of JSON, and tables that hold files."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import ipc, parquet

from arcvideo.data.importers.columnar import cell_bytes
from arcvideo.data.importers.parts import json_parts
from arcvideo.media.errors import MediaError


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_a_long_list_is_read_as_json_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr("arcvideo.data.importers.parts._PIECE", piece)
    values = [
        1,
        -2.5e10,
        'a"\\u00e9\u00e9\n]',
        None,
        True,
        [],
        [[1], {"a": [2]}],
        {},
        {"x": {"y": "z, ["}},
        float("inf"),
        "",
    ]
    path = tmp_path / "list.json"
    for text in (json.dumps(values), json.dumps(values, indent=3, ensure_ascii=False), " [ ] ", "[12345]"):
        path.write_text(text)
        assert list(json_parts(path)) == json.loads(text)
    named = {str(number): value for number, value in enumerate(values)}
    path.write_text(json.dumps(named))
    assert dict(json_parts(path)) == named


@pytest.mark.parametrize(
    "text", ["", "[1, 2", "[1 2]", "[1,]", "[1]]", "[1, nul]", '["a', "3", '{"a" 1}', "{1: 2}", "[,1]"]
)
def test_a_damaged_list_is_told_with_its_place(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"list\.json: is not JSON: .*at character \d"):
        list(json_parts(path))


@pytest.mark.parametrize("kind", ["parquet", "file.arrow", "stream.arrow"])
def test_files_inside_of_tables_are_found_again_in_any_order(tmp_path: Path, kind: str) -> None:
    rows = [{"video": {"bytes": bytes([number]) * 1000, "path": f"{number}.mp4"}, "q": "?"} for number in range(9)]
    table, path = pyarrow.Table.from_pylist(rows), tmp_path / f"t.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=2)
    else:
        new = ipc.new_file if kind.startswith("file") else ipc.new_stream
        with new(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=2)
    for row in (0, 1, 3, 8, 2, 2, 7):
        assert cell_bytes(path, row=row, column="video") == bytes([row]) * 1000
    with pytest.raises(MediaError, match=r"row 10: the table ends"):
        cell_bytes(path, row=9, column="video")


@pytest.mark.parametrize("piece", [7, 64, 1 << 18])
def test_a_part_that_python_cannot_hold_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("arcvideo.data.importers.parts._PIECE", piece)
    deep, long = "[" * 5000 + '"]\\"}"' + "]" * 5000, "9" * 5000
    path = tmp_path / "rows.json"
    path.write_text(f'[1, {deep}, {{"a": {deep}, "b": "[,"}} , {long}, 2, {deep}]')
    kinds = [value if isinstance(value, int) else type(value).__name__ for value in json_parts(path)]
    assert kinds == [1, "RecordError", "RecordError", "RecordError", 2, "RecordError"]
    path.write_text(f'{{"a": {long}, "b": 1}}')
    assert [name for name, _ in json_parts(path)] == ["a", "b"]
    path.write_text("[1, " + "[" * 5000)
    with pytest.raises(ValueError, match="a value has no end"):
        list(json_parts(path))
