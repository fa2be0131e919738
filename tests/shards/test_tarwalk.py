"""Every byte of a tar is accounted for: nothing behind a hole, an end mark or a hostile header vanishes untold."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from arcvideo.shards.index import ensure_indexes
from arcvideo.shards.members import Problem, read_groups
from arcvideo.shards.tarwalk import BLOCK, Entry, Gap, walk, walk_bytes
from arcvideo.shards.write import Record, write_shards
from tests.data import build

ITEMS = {"items": [{"task": "qa", "question": "what is shown?", "answer": "red"}]}


def shard(folder: Path, first: int = 0, count: int = 6) -> Path:
    records = (
        Record(key=f"clip-{number:03d}", content=ITEMS, media={"png": build.png()})
        for number in range(first, first + count)
    )
    (path,) = write_shards(records, out=folder)
    return path


def keys_and_problems(path: Path) -> tuple[list[str], list[Problem]]:
    (index,) = ensure_indexes([path], progress=False)
    return [index.key(row) for row in range(len(index.clips))], index.problems()


def packed(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def header(name: str, *, size: int, kind: bytes = b"0") -> bytes:
    """A header with any size, whatever follows it."""
    info = member(name, size=size, type=kind)
    return info.tobuf(tarfile.GNU_FORMAT)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "x.tar"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("blocks", [1, 8])
def test_records_behind_zeroed_blocks_are_used_and_the_hole_is_told(tmp_path: Path, blocks: int) -> None:
    path = shard(tmp_path, count=20)
    content = bytearray(path.read_bytes())
    at = content.index(b"clip-008.png")
    content[at : at + blocks * BLOCK] = bytes(blocks * BLOCK)
    path.write_bytes(content)
    keys, problems = keys_and_problems(path)
    lost = {f"clip-{number:03d}" for number in range(20)} - set(keys)
    assert "clip-008" in lost
    assert len(lost) <= 1 + blocks // 4  # a record has four blocks
    (hole,) = [problem for problem in problems if problem.stage == "shard"]
    assert hole.reason in ("broken_tar", "joined_tar")
    assert f"bytes {at} to" in hole.detail


def test_both_of_two_joined_tars_are_used_and_the_seam_is_told(tmp_path: Path) -> None:
    first, second = shard(tmp_path / "a", 0, 10), shard(tmp_path / "b", 10, 10)
    keys, problems = keys_and_problems(written(tmp_path, first.read_bytes() + second.read_bytes()))
    assert keys == [f"clip-{number:03d}" for number in range(20)]
    assert [problem.reason for problem in problems] == ["joined_tar"]
    assert f"to {first.stat().st_size}:" in problems[0].detail


@pytest.mark.parametrize(
    ("records", "zeros", "reason"), [(0, 1 << 20, "empty_tar"), (3, 3 << 20, "zero_tail"), (3, 30 << 10, "zero_tail")]
)
def test_space_that_was_never_filled_is_told(tmp_path: Path, records: int, zeros: int, reason: str) -> None:
    data = shard(tmp_path, count=records).read_bytes() if records else b""
    keys, problems = keys_and_problems(written(tmp_path, data + bytes(zeros)))
    assert len(keys) == records
    assert [problem.reason for problem in problems] == [reason]


def test_records_zeroed_up_to_the_end_are_told(tmp_path: Path) -> None:
    good = shard(tmp_path, count=20).read_bytes()
    at = good.index(b"clip-012.png")
    _, problems = read_groups(written(tmp_path, good[:at] + bytes(len(good) - at)))
    assert [problem.reason for problem in problems] == ["zero_tail"]
    assert f"bytes {at} to {len(good)}:" in problems[0].detail


@pytest.mark.parametrize("blocks", [1, 20, 32, 128, 2048])
def test_zeros_that_fill_a_record_are_no_damage(tmp_path: Path, blocks: int) -> None:
    good = shard(tmp_path, count=20).read_bytes()
    content = good[: -(-len(good.rstrip(b"\0")) // BLOCK) * BLOCK] + bytes(2 * BLOCK)
    _, problems = read_groups(written(tmp_path, content + bytes(-len(content) % (blocks * BLOCK))))
    assert not problems


@pytest.mark.parametrize("claimed", [1 << 20, 1 << 50])
def test_records_behind_a_header_that_claims_more_than_there_is_are_used(tmp_path: Path, claimed: int) -> None:
    good = shard(tmp_path, count=6).read_bytes()
    at = good.index(b"clip-003.png")
    keys, problems = keys_and_problems(written(tmp_path, good[:at] + header("x.json", size=claimed) + good[at:]))
    assert keys == [f"clip-{number:03d}" for number in range(6)]
    assert [(problem.key, problem.reason) for problem in problems] == [("x", "truncated"), ("x.tar", "broken_tar")]
    assert f"bytes {at + BLOCK} to {at + BLOCK}:" in problems[1].detail


@pytest.mark.parametrize("between", [bytes(BLOCK), b"x" * BLOCK, b"ustar" * 102 + b"us"])
def test_many_small_holes_are_read_once(between: bytes) -> None:
    data = (between + header("a", size=0)) * 2000
    asked = 0

    def pread(count: int, at: int) -> bytes:
        nonlocal asked
        asked += len(data[at : at + count])
        return data[at : at + count]

    found = list(walk_bytes(pread, size=len(data)))
    assert len(found) == 4001
    assert asked < 16 * len(data)


def test_what_is_no_tar_behind_the_end_mark_is_told(tmp_path: Path) -> None:
    keys, problems = keys_and_problems(written(tmp_path, shard(tmp_path).read_bytes() + b"#" * 700))
    assert len(keys) == 6
    assert next(problem.reason for problem in problems if "bytes" in problem.detail) == "broken_tar"


def test_a_compressed_shard_is_called_that(tmp_path: Path) -> None:
    keys, problems = keys_and_problems(written(tmp_path, gzip.compress(shard(tmp_path).read_bytes())))
    assert keys == []
    assert "compressed with gzip; unpack it" in problems[0].detail


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_those_that_python_finds(tmp_path: Path, format: int) -> None:
    names = ["a.mp4", "a.json", "folder/b.wav", "n" * 90 + ".txt", "d" * 60 + "/" + "n" * 90 + ".txt"]
    names += [] if format == tarfile.USTAR_FORMAT else ["long/" * 40 + "c.png", "名前/电影.mp4"]
    data = packed(
        *((member(name), bytes(range(7)) * (100 * number)) for number, name in enumerate(names)),
        (member("folder", type=tarfile.DIRTYPE), b""),
        format=format,
    )
    path = written(tmp_path, data)
    found = list(walk(path))
    assert all(isinstance(entry, Entry) and not entry.fault for entry in found)
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size, info.isreg()) for info in tar]
    assert [(entry.name.rstrip("/"), entry.offset, entry.size, entry.kind == "file") for entry in found] == expected


def test_sizes_beyond_eight_gigabytes_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, header("a.mp4", size=9 << 30))
    entry, gap = walk(path)
    assert entry.size == 9 << 30
    assert gap.reason == "truncated_tar"


def long_pax() -> bytes:
    """A pax header that names itself millions of times over."""
    info = member("a.mp4", pax_headers={"comment": "x" * (3 << 20)})
    return packed((info, b"data"), (member("b.json"), b"{}"))


def chained() -> bytes:
    """A thousand extended headers for one member."""
    return header("././@LongLink", size=0, kind=b"L") * 1000 + header("a.mp4", size=0) + bytes(1024)


HOSTILE = {
    "pax header of megabytes": long_pax(),
    "chain of headers": chained(),
    "pax header that claims terabytes": header("x", size=1 << 42, kind=b"x") + bytes(1024),
    "name that claims terabytes": header("x", size=1 << 42, kind=b"L") + bytes(1024),
    "pax of nonsense": header("x", size=512, kind=b"x") + b"9" * 512 + header("a.mp4", size=0) + bytes(1024),
    "pax size of letters": packed((member("a.mp4", pax_headers={"size": "1e9"}), b"")),
    "pax size of 5,000 digits": packed((member("a.mp4", pax_headers={"size": "9" * 5000}), b"")),
    "endless sparse map": header("a.mp4", size=0, kind=b"S")[:482] + b"\1" * 30 + b"\1" * (64 << 10),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_headers_cost_a_row_and_little_else(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, HOSTILE[name])
    tracemalloc.start()
    _, problems = read_groups(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert problems
    assert peak < 16 << 20


def test_a_member_with_a_faulty_header_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    groups, problems = read_groups(written(tmp_path, long_pax()))
    assert [group.key for group in groups] == ["b"]
    assert [(problem.key, problem.reason) for problem in problems] == [("a", "bad_header")]


def test_any_damage_leaves_every_byte_accounted_for(tmp_path: Path) -> None:
    good = shard(tmp_path, count=8).read_bytes()
    dice = random.Random(7)
    for _ in range(150):
        content = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            at, length = dice.randrange(len(good)), dice.choice([1, 30, 512, 2000])
            content[at : at + length] = dice.choice([bytes(length), dice.randbytes(length)])
        data = bytes(content[: dice.choice([len(good), dice.randrange(len(good))])])
        covered = 0
        for found in walk(written(tmp_path, data)):
            if isinstance(found, Gap):
                assert found.start == covered
                covered = found.end
            else:
                assert found.offset > covered
                covered = min(found.offset + -(-found.size // BLOCK) * BLOCK, len(data))
                if found.offset + found.size > len(data):
                    covered = found.offset  # the next gap says how much of it there is
        rest = data[covered:]
        assert not rest.strip(b"\0")
