"""Annotations as other programs and other systems write them: tables of conversations, paths of Windows, NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from arcvideo.data.shards import main
from arcvideo.files import read_lines
from arcvideo.shards.index import ShardIndex, ensure_indexes
from tests.data import build

ASKED = [{"role": "user", "content": "<audio>\nWhat?"}, {"role": "assistant", "content": "A tone."}]


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.wav", "b.wav", "sub/c.wav")):
        (folder / name).write_bytes(build.wav(0.5 + number / 4))
    return folder


def imported(tmp_path: Path, annotations: Path, kind: str, *more: str) -> tuple[int, ShardIndex | None, list[Any]]:
    out = tmp_path / "out"
    words = ["import", "--format", kind, "--annotations", str(annotations), "--out", str(out), "--workers", "0", *more]
    status = main([*words, *(() if "--videos" in more else ("--videos", str(tmp_path / "media")))])
    shards = sorted(out.glob("*.tar"))
    index = ensure_indexes(shards, progress=False)[0] if shards else None
    return status, index, read_lines(out / "shard.quarantine.jsonl")


def table_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["sharegpt", "ms-swift", "llama-factory", "openai"])
def test_conversations_in_a_table_are_read_with_media_by_name_and_in_its_cells(
    media: Path, tmp_path: Path, kind: str
) -> None:
    held = {name: {"bytes": (media / name).read_bytes(), "path": name} for name in ("a.wav", "b.wav")}
    two = [
        {"role": "user", "content": "<audio>\n<audio>\nWhich is longer?"},
        {"role": "assistant", "content": "The second."},
    ]
    rows = [
        {"messages": ASKED, "audios": [{"bytes": None, "path": "sub/c.wav"}]},
        {"messages": ASKED, "audios": [held["a.wav"]]},
        {"messages": two, "audios": [held["b.wav"], held["a.wav"]]},
        {"messages": ASKED, "audios": []},
    ]
    status, index, refused = imported(tmp_path, table_of(tmp_path / "t.parquet", rows), kind)
    assert status == 0
    assert index is not None
    assert [index.media_count(row) for row in range(3)] == [1, 1, 2]
    assert index.media_bytes(0)[0] == (media / "sub/c.wav").read_bytes()
    assert index.media_bytes(1)[0] == held["a.wav"]["bytes"]
    assert [index.media_bytes(2, part=part)[0] for part in (0, 1)] == [held["b.wav"]["bytes"], held["a.wav"]["bytes"]]
    assert [(row["key"], row["reason"]) for row in refused] == [("row 4", "bad_media_tag")]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_nan_is_what_pandas_writes_for_nothing_and_is_taught_to_nobody(media: Path, tmp_path: Path, kind: str) -> None:
    rows = [
        {"video": "a.wav", "question": "q", "answer": float("nan")},
        {"video": "b.wav", "question": "q", "answer": 2.5},
    ]
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        table_of(path, rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    _, index, refused = imported(tmp_path, path, "table")
    assert index is not None
    assert [index.record(row)["items"][0]["answer"] for row in range(len(index.clips))] == ["2.5"]
    assert [row["reason"] for row in refused] == ["no_answer"]


def test_paths_of_windows_are_read_where_they_lead_somewhere_and_told_where_not(media: Path, tmp_path: Path) -> None:
    names = ["sub\\c.wav", ".\\a.wav", "C:\\data\\b.wav", "\\\\server\\share\\b.wav", "..\\a.wav"]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"video": name, "question": "q", "answer": "x"}) for name in names))
    _, index, refused = imported(tmp_path, path, "table")
    assert index is not None
    assert [index.key(row) for row in range(len(index.clips))] == ["sub/c", "a"]
    assert [row["reason"] for row in refused] == ["no_media", "no_media", "unsafe_name"]
    assert all("a path of Windows: name the file as it lies in --videos" in row["detail"] for row in refused[:2])


def test_a_file_whose_name_has_a_backslash_is_still_found(media: Path, tmp_path: Path) -> None:
    (media / "odd\\name.wav").write_bytes(build.wav(0.5))
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"video": "odd\\name.wav", "question": "q", "answer": "x"}))
    status, index, _ = imported(tmp_path, path, "table")
    assert status == 0
    assert index is not None


def test_an_absolute_path_into_a_relative_folder_is_the_file_by_its_short_name(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "q.jsonl"
    names = ["a.wav", str(media / "a.wav"), f"file://{media}/sub/c.wav", str(tmp_path / "q.jsonl")]
    path.write_text("\n".join(json.dumps({"video": name, "question": "q", "answer": "x"}) for name in names))
    _, index, refused = imported(tmp_path, path, "table", "--videos", "media")
    assert index is not None
    assert [(index.key(row), int(index.clips["item_count"][row])) for row in range(2)] == [("a", 2), ("sub/c", 1)]
    assert [row["reason"] for row in refused] == ["unsafe_name"]


def test_nothing_above_the_folder_is_read_where_the_folder_is_the_one_we_are_in(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(media / "sub")
    path = tmp_path / "q.jsonl"
    names = ["c.wav", "../a.wav"]
    path.write_text("\n".join(json.dumps({"video": name, "question": "q", "answer": "x"}) for name in names))
    _, _, refused = imported(tmp_path, path, "table", "--videos", ".")
    assert [row["reason"] for row in refused] == ["unsafe_name"]


@pytest.mark.parametrize("names", ["ABC", ["option_a", "option_b", "option_c"], ["Option 1", "Option 2", "Option 3"]])
def test_options_in_columns_of_their_own_are_the_options(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    path = tmp_path / "q.csv"
    rows = ["a.wav,which?,red,blue,,B,hard", "b.wav,which?,red,blue,green,green,", "sub/c.wav,which?,red,,green,C,"]
    path.write_text("\n".join([",".join(["video", "question", *names, "answer", "level"]), *rows]))
    status, index, refused = imported(tmp_path, path, "table")
    assert status == 0
    assert index is not None
    items = [index.record(row)["items"][0] for row in range(len(index.clips))]
    assert [(item["task"], item["options"], item["answer"]) for item in items] == [
        ("mcq", ["red", "blue"], "B"), ("mcq", ["red", "blue", "green"], "green"),
    ]  # fmt: skip
    assert [row["reason"] for row in refused] == ["bad_options"]  # whether C is then the second or the third
    assert "ignored  level of 1 rows" in capsys.readouterr().out


def test_the_first_option_is_not_taken_for_the_answer(media: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("video,question,A,B,correct\na.wav,which?,red,blue,B\n")
    _, index, refused = imported(tmp_path, path, "table")
    assert index is None
    assert len(refused) == 1
