from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from arcvideo import files
from arcvideo.files import cut_torn_row, json_line, read_lines, whole, write_lines, write_whole
from tests.spawned import running

ROOT = Path(__file__).resolve().parent.parent
ODD = ["plain", "a\u2028b\u2029c\x85d", "half \ud83d of a pair", "tab\tand\nnewline", "\x00\x1c\x0b", "红色"]


@pytest.mark.parametrize("text", ODD)
def test_any_text_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    rows = [{"key": text, text: 1}, {"key": "next"}]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert read_lines(tmp_path / "rows.jsonl") == rows
    assert json_line({"key": text}).isascii()


def test_rows_that_others_wrote_with_open_characters_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"a": "x\u2028y\x85"}\r\n\n{"b": "红"}\n'.encode())
    assert read_lines(path) == [{"a": "x\u2028y\x85"}, {"b": "红"}]


def test_a_last_row_that_was_cut_short_is_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    whole_rows = [{"text": f"row {number} 红"} for number in range(3)]
    data = "".join(map(json_line, whole_rows)).encode()
    for cut in range(data.rindex(b"\n", 0, -1) + 2, len(data) - 1):
        path.write_bytes(data[:cut])
        assert read_lines(path) == whole_rows[:2]
        assert capsys.readouterr().err == f"{path}: its last row was cut short when a process stopped; left out\n"
    path.write_bytes(data[:-1])  # complete but for its end
    assert read_lines(path) == whole_rows


@pytest.mark.parametrize("rest", ["", "{", '{"a": "' + "x" * 200_000])
@pytest.mark.parametrize("rows", [0, 2])
def test_rows_are_added_behind_whole_rows_and_a_torn_one_is_cut_off_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int, rest: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' * rows + rest)
    cut_torn_row(path)
    assert path.read_text() == '{"a": 1}\n' * rows
    told = f"{path}: its last row was cut short when a process stopped; left out\n"
    assert capsys.readouterr().err == (told if rest else "")


@pytest.mark.parametrize("line", [b"{", b"\xff\xff", b"[" * 100_000, b"\x00"])
def test_damage_between_rows_names_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"b": 2}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: not JSON \(.*\); repair the line, or delete it$"):
        read_lines(path)


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_whole(path, "old")
    with suppress(RuntimeError), whole(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"
    write_whole(path, b"new")
    assert path.read_text() == "new"


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_whole(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_what_is_not_finished_is_no_file_of_its_kind(tmp_path: Path) -> None:
    """A killed process leaves its temporary file; a folder of weights must not take it for weights."""
    with whole(tmp_path / "model.safetensors") as temporary:
        temporary.touch()
        assert list(tmp_path.glob("*.safetensors")) == []


KILLED = """
import os, signal, sys, time
from pathlib import Path
from arcvideo.files import whole
with whole(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("up", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_writer_left_goes_when_somebody_writes_there_and_what_is_under_way_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a")]
    words: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with running(command, **words) as dead, running(command, **words) as living:
        assert dead.stdout is not None
        assert living.stdout is not None
        assert (dead.stdout.readline(), living.stdout.readline()) == ("up\n", "up\n")
        assert len(list(tmp_path.iterdir())) == 2
        dead.kill()
        dead.wait()
        elsewhere = tmp_path / f".a.{(int(files._machine(), 16) ^ 1):04x}01234567.partial"  # of another machine
        elsewhere.write_text("half")
        files._looked_into.discard(tmp_path)
        write_whole(tmp_path / "b", "whole")
        left = sorted(path.name for path in tmp_path.iterdir())
        assert len(left) == 3
        assert {"b", elsewhere.name} < set(left)
        os.utime(elsewhere, (0, 0))
        files._looked_into.discard(tmp_path)
        write_whole(tmp_path / "b", "whole")
        assert not elsewhere.exists()
        assert len(list(tmp_path.iterdir())) == 2
