"""One odd record, name or number is one row of the quarantine list, and stops nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcvideo import seals
from arcvideo.data.shards import main
from arcvideo.shards.index import ShardIndex, ensure_indexes, open_index
from arcvideo.shards.lengths import all_lengths
from arcvideo.shards.text import open_text
from arcvideo.shards.write import Record, write_shards
from arcvideo.tasks import RecordError
from tests.data import build

QA = {"task": "qa", "question": "what is shown?", "answer": "red"}
GOOD = json.dumps({"items": [QA]}).encode()


def tar(path: Path, *members: tuple[str, bytes], encoding: str = "utf-8") -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding=encoding) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def indexed(path: Path) -> ShardIndex:
    (index,) = ensure_indexes([path], progress=False)
    return index


def keys(index: ShardIndex) -> list[str]:
    return [index.key(row) for row in range(len(index.clips))]


def item(**changes: Any) -> bytes:
    return json.dumps({"items": [QA | changes]}).encode()


ODD_RECORDS: dict[str, tuple[bytes, str]] = {
    "half an emoji in an answer": (item(answer="nice \ud83d"), "broken_text"),
    "half an emoji in a tag": (item(tags=["\ude00"]), "broken_text"),
    "half an emoji in a name of a field": (item(**{"\ud83d": 1}), "broken_text"),
    "an integer beyond any float": (item(task="grounding", span=[0, 10**400]), "bad_number"),
    "an integer of 5,000 digits": (b'{"items": [{"span": [0, ' + b"9" * 5000 + b"]}]}", "broken_json"),
    "infinity": (b'{"items": [{"task": "grounding", "question": "?", "span": [0, 1e999]}]}', "bad_span"),
    "a media tag in an answer": (item(answer="red <video>"), "bad_media_tag"),
    "a media tag of another format": (item(question="<|vision_start|><|video_pad|>what?"), "bad_media_tag"),
    "a numbered media tag": (item(question="<video_0> what?"), "bad_media_tag"),
    "a media tag in capitals": (item(question="<VIDEO> what?"), "bad_media_tag"),
    "an item inside an item": (b'{"items": [{"task": {"task": "qa"}}]}', "unknown_task"),
    "numbers for turns": (item(turns=[1, 2]), "bad_turns"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ODD_RECORDS))
def test_an_odd_item_is_one_row_and_its_neighbours_are_used(tmp_path: Path, name: str) -> None:
    odd, reason = ODD_RECORDS[name]
    members = [(f"{key}.{kind}", data) for key in "axz" for kind, data in
               (("json", odd if key == "x" else GOOD), ("png", build.png()))]  # fmt: skip
    index = indexed(tar(tmp_path / "x.tar", *members))
    assert keys(index) == ["a", "z"]
    assert [(problem.key.split("/")[0], problem.reason) for problem in index.problems()] == [("x", reason)]
    assert main(["stats", str(index.shard)]) == 0


@pytest.mark.parametrize("name", ["café", "a\u2028b", "a\x85b", "a\x1b[31mb", "a\nb", "名前"])
def test_any_name_in_utf8_is_a_key(tmp_path: Path, name: str) -> None:
    path = tar(tmp_path / "x.tar", (f"{name}.json", GOOD), (f"{name}.png", build.png()), ("z.json", b"{"))
    index = indexed(path)
    assert keys(index) == [name]
    assert [problem.key for problem in index.problems()] == ["z"]


@pytest.mark.parametrize("good", [True, False])
def test_a_name_that_is_not_utf8_is_one_row(tmp_path: Path, good: bool) -> None:
    path = tar(
        tmp_path / "x.tar",
        ("a.json", GOOD),
        ("a.png", build.png()),
        ("caf\xe9.json", GOOD if good else b"{"),
        ("caf\xe9.png", build.png()),
        ("z.json", GOOD),
        ("z.png", build.png()),
        encoding="latin-1",
    )
    index = indexed(path)
    assert keys(index) == ["a", "z"]
    assert [(problem.key, problem.reason) for problem in index.problems()] == [("caf\\udce9", "broken_name")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_record_in_any_unicode_is_read_without_its_mark(tmp_path: Path, encoding: str) -> None:
    text = json.dumps({"items": [QA | {"answer": "rouge é"}]}, ensure_ascii=False)
    index = indexed(tar(tmp_path / "x.tar", ("a.json", text.encode(encoding)), ("a.png", build.png())))
    assert index.record(0)["items"][0]["answer"] == "rouge é"


def test_each_record_that_dots_cut_short_is_a_row(tmp_path: Path) -> None:
    members = [(f"clip.{number:04d}.{kind}", data) for number in range(5)
               for kind, data in (("png", build.png()), ("json", GOOD))]  # fmt: skip
    index = indexed(tar(tmp_path / "x.tar", *members, ("good.json", GOOD), ("good.png", build.png())))
    assert keys(index) == ["good"]
    problems = index.problems()
    assert [problem.key for problem in problems] == [f"clip.{number:04d}" for number in range(5)]
    assert {problem.reason for problem in problems} == {"dotted_key"}
    assert "first dot" in problems[0].detail


def test_a_second_json_with_dots_beside_the_record_is_no_fault(tmp_path: Path) -> None:
    index = indexed(
        tar(tmp_path / "x.tar", ("a.json", GOOD), ("a.meta.json", b"{}"), ("a.png", build.png()), ("a.txt", b"x"))
    )
    assert (keys(index), index.problems()) == (["a"], [])


def test_records_whose_members_lie_apart_are_a_row_each_with_the_remedy(tmp_path: Path) -> None:
    pictures = [(f"{key}.png", build.png()) for key in "abc"]
    records = [(f"{key}.json", GOOD) for key in "abc"]
    index = indexed(tar(tmp_path / "x.tar", *pictures, *records))
    assert keys(index) == []
    assert [(problem.key, problem.reason) for problem in index.problems()] == [(key, "scattered") for key in "abc"]
    assert "write the tar with --sort=name" in index.problems()[0].detail


def test_a_medium_of_unknown_type_is_what_its_content_says(tmp_path: Path) -> None:
    index = indexed(
        tar(tmp_path / "x.tar", ("a.json", GOOD), ("a.dat", build.mp4(1.0)), ("b.json", GOOD), ("b.dat", b"?" * 99))
    )
    assert keys(index) == ["a"]
    ((key, reason, detail),) = [(problem.key, problem.reason, problem.detail) for problem in index.problems()]
    assert (key, reason) == ("b", "no_media")
    assert "mp4" in detail
    assert "wav" in detail


def test_sound_behind_the_end_of_its_picture_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media = [{"png": build.png(), "wav": build.wav(20.0)}, {"mp4": build.mp4(2.0)}, {"wav": build.wav(9.0)}]
    records = [
        Record(key=f"clip-{number}", content=json.loads(GOOD), media=files) for number, files in enumerate(media)
    ]
    (path,) = write_shards(records, out=tmp_path)
    meta = indexed(path).meta
    assert (meta["unheard_clips"], meta["unheard_seconds"]) == (1, 19.0)
    for command in ("index", "stats"):
        assert main([command, str(path)]) == 0
        assert "19 s of sound" in capsys.readouterr().out


# seals


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    (path,) = write_shards(build.records(3), out=tmp_path)
    return path


def counted(index: ShardIndex) -> np.ndarray:
    (lengths,) = all_lengths([index], tokenizer=build.tokenizer(), style="plain", wording="brief", progress=False)
    return np.array(lengths.rows)


def test_a_flipped_bit_in_any_file_of_an_index_is_told_and_mended(
    shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = indexed(shard)
    rows, digest = counted(index), index.digest
    names = sorted(path.name for path in index.folder.iterdir())
    assert len(names) == 10
    for name in names:
        path = index.folder / name
        whole = path.read_bytes()
        if not whole:
            continue
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:])
        assert open_index(shard) is None or "tokens" in name
        again = indexed(shard)
        assert again.digest == digest
        assert np.array_equal(counted(again), rows)
        assert "made again" in capsys.readouterr().err, name
        assert open_index(shard) is not None


def test_a_whole_file_is_hashed_once_a_machine(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    index = indexed(shard)
    assert open_index(shard) is not None
    hashed: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: hashed.append(file.name) or digest(file, name))
    monkeypatch.setattr(seals, "_remembered", {})  # as another process
    assert open_index(shard) is not None
    assert hashed == []
    (index.folder / "keys.npy").touch()
    assert open_index(shard) is not None
    assert hashed == [str(index.folder / "keys.npy")]


PICTURES = [build.png() + f"comment {number}".encode() for number in range(3)]


def spoiled(shard: Path, what: bytes, by: bytes) -> None:
    """Change bytes as a bad disk does: nobody has written, so the file's times stay."""
    facts, data = shard.stat(), shard.read_bytes()
    assert data.count(what) == 1
    shard.write_bytes(data.replace(what, by))
    os.utime(shard, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A shard with an index, of which the answer of the second record was damaged since."""
    records = [
        Record(key=f"c{number}", content={"items": [QA | {"answer": f"red {number}"}]}, media={"png": picture})
        for number, picture in enumerate(PICTURES)
    ]
    (path,) = write_shards(records, out=tmp_path / "in")
    indexed(path)
    spoiled(path, b"red 1", b"bed 1")
    return path


def test_a_record_that_was_damaged_since_it_was_indexed_is_one_row(three: Path) -> None:
    index = indexed(three)
    with pytest.raises(RecordError, match=r"corrupt: c1 in .*restore the shard"):
        index.record(1)
    assert index.record(2)["items"][0]["answer"] == "red 2"
    (lengths,) = all_lengths([index], tokenizer=build.tokenizer(), style="plain", wording="brief", progress=False)
    assert [(problem.key, problem.reason) for problem in lengths.problems] == [("c1", "corrupt")]
    assert main(["stats", str(three)]) == 0
    assert main(["verify", str(three)]) == 1


@pytest.mark.parametrize("what", ["record", "media"])
def test_damage_is_not_copied_into_new_shards(
    three: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "media":
        spoiled(three, b"bed 1", b"red 1")
        spoiled(three, b"comment 1", b"damaged 1")
    (tmp_path / "needs.jsonl").write_text('{"key": "c0/0", "tags": ["needs:both"]}\n')
    assert main(["tag", str(tmp_path), str(three), "--out", str(tmp_path / "out")]) == 0
    assert keys(indexed(tmp_path / "out" / three.name.replace("000000", "000000-000000"))) == ["c0", "c2"]
    assert "left out: corrupt: c1 in" in capsys.readouterr().err


def test_a_shard_that_is_not_the_one_of_the_digest_beside_it_is_told_when_it_is_indexed(shard: Path) -> None:
    assert not indexed(shard).problems()
    shard.write_bytes(shard.read_bytes().replace(b"red", b"bed", 1))
    assert [(problem.stage, problem.reason) for problem in indexed(shard).problems()] == [("shard", "changed")]


@pytest.mark.parametrize("encoding", [None, "utf-16"])
def test_a_text_is_opened_once_so_that_what_is_read_is_what_was_looked_at(tmp_path: Path, encoding: str | None) -> None:
    """A pipe gives its bytes once."""
    pipe, text = tmp_path / "rows", "caf\u00e9\nline two\n"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(text.encode(encoding or "utf-8")), daemon=True).start()
    with open_text(pipe, encoding=encoding) as file:
        assert file.read() == text
