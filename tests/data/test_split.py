"""Own questions in two parts: every line in one of them, no clip in both, and the same side for a clip for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from arcvideo.bench import read_bench
from arcvideo.data.shards import main
from arcvideo.files import read_lines
from arcvideo.shards.index import ensure_indexes
from tests.bench.layouts import clip, lines


def questions(count: int) -> list[dict[str, Any]]:
    """Three questions about each clip."""
    return [
        {"video": f"{number:03d}.mp4", "id": f"{number}-{one}", "question": "what?", "answer": "x"}
        for number in range(count)
        for one in range(3)
    ]


def split(path: Path, out: Path, *more: str) -> tuple[list[Any], list[Any]]:
    assert main(["split", str(path), "--out", str(out), *more]) == 0
    return read_lines(out / f"{path.stem}-train.jsonl"), read_lines(out / f"{path.stem}-held-out.jsonl")


def test_every_question_is_on_one_side_and_no_clip_on_both(tmp_path: Path) -> None:
    rows = questions(100)
    lines(tmp_path / "q.jsonl", rows)
    train, held = split(tmp_path / "q.jsonl", tmp_path / "out", "--held-out", "30%")
    assert sorted([*train, *held], key=json.dumps) == sorted(rows, key=json.dumps)
    assert not {row["video"] for row in train} & {row["video"] for row in held}
    assert 15 <= len({row["video"] for row in held}) <= 45  # 30 +- 3 deviations of 100 draws


def test_later_lines_move_no_clip(tmp_path: Path) -> None:
    lines(tmp_path / "q.jsonl", questions(40))
    _, before = split(tmp_path / "q.jsonl", tmp_path / "a")
    lines(tmp_path / "q.jsonl", questions(90)[::-1])
    _, after = split(tmp_path / "q.jsonl", tmp_path / "b")
    old = {row["video"] for row in before}
    assert old == {row["video"] for row in after if int(row["video"][:3]) < 40}


def test_copies_of_a_clip_are_one_clip_when_the_files_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = questions(12)
    for number in range(12):
        clip(tmp_path / f"clips/{number:03d}.mp4", shade=number // 2)  # each film has two names
    lines(tmp_path / "q.jsonl", rows)
    sides = split(tmp_path / "q.jsonl", tmp_path / "out", "--held-out=50%", "--videos", str(tmp_path / "clips"))
    assert "12 names are 6 clips by their bytes" in capsys.readouterr().out
    train, held = ({int(row["video"][:3]) // 2 for row in side} for side in sides)
    assert train
    assert held
    assert not train & held


def test_a_clip_is_on_the_side_where_an_import_has_it_be_it_a_file_or_in_a_table(tmp_path: Path) -> None:
    names = [f"{number:03d}.mp4" for number in range(12)]
    for number, name in enumerate(names):
        clip(tmp_path / "clips" / name, shade=number)
    rows = [{"video": name, "question": "what?", "answer": "x"} for name in names]
    lines(tmp_path / "q.jsonl", rows)
    cells = [{**row, "video": {"bytes": (tmp_path / "clips" / str(row["video"])).read_bytes(),
                               "path": row["video"]}} for row in rows]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(cells), tmp_path / "q.parquet")
    words = ["--held-out", "50%", "--videos", str(tmp_path / "clips")]
    _, held = split(tmp_path / "q.jsonl", tmp_path / "out", *words)
    wanted = {row["video"][:3] for row in held}
    for kind in ("jsonl", "parquet"):
        out = tmp_path / kind
        asked = ["import", "--format", "table", "--annotations", str(tmp_path / f"q.{kind}"), "--out", str(out)]
        assert main([*asked, "--workers", "0", *words]) == 0
        (shard,) = out.glob("shard-held-out-*.tar")
        (index,) = ensure_indexes([shard], progress=False)
        assert {index.key(row)[:3] for row in range(len(index.clips))} == wanted, kind


def test_both_parts_are_benchmarks_of_their_own(tmp_path: Path) -> None:
    for number in range(6):
        clip(tmp_path / f"{number:03d}.mp4")
    lines(tmp_path / "q.jsonl", questions(6))
    sides = split(tmp_path / "q.jsonl", tmp_path, "--held-out", "50%")
    for side, rows in zip(("train", "held-out"), sides, strict=True):
        bench = read_bench("own", tmp_path, file=f"q-{side}.jsonl")
        assert (bench.name, [item.id for item in bench.items]) == (f"own-q-{side}", [row["id"] for row in rows])


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ('{"video": 3}\n', [], "line 1: field 'video' names no clip; --by says which field does"),
        ('{"video": "a"}\n{"video"\n', [], "line 2: "),
        ('{"video": "a"}\n', [], "of 1 clips leaves one side without any"),
        ('{"video": "a"}\n', ["--held-out", "140%"], "--held-out 140%"),
        ('{"video": "a"}\n', ["--videos", "."], "no such file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str], message: str
) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    assert main(["split", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
