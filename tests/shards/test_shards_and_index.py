from __future__ import annotations

import io
import json
import mmap
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arcvideo.report.film import _indexes
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ShardIndex, build_index, ensure_indexes, index_folder, open_index
from arcvideo.shards.lengths import all_lengths
from arcvideo.shards.members import read_groups, record_key
from arcvideo.shards.write import Record, write_shards
from tests.data import build

GOOD = {"items": [{"task": "caption", "answer": "red"}]}


def tar(
    path: Path, members: list[tuple[str, bytes]], *, change: Callable[[tarfile.TarInfo], None] | None = None
) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change:
                change(info)
            file.addfile(info, io.BytesIO(data))
    return path


def record(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def indexed(path: Path) -> ShardIndex:
    (index,) = ensure_indexes([path], progress=False)
    return index


def reasons(path: Path) -> dict[str, str]:
    return {problem.key: problem.reason for problem in indexed(path).problems()}


def test_writing_is_reproducible_and_plain_webdataset_reads_it(tmp_path: Path) -> None:
    import webdataset

    first = write_shards(build.records(3), out=tmp_path / "a", per_shard=2)
    second = write_shards(build.records(3), out=tmp_path / "b", per_shard=2)
    assert [path.name for path in first] == ["shard-000000.tar", "shard-000001.tar"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    samples = list(webdataset.WebDataset([str(path) for path in first], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["clip-00000", "clip-00001", "clip-00002"]
    assert samples[0]["mp4"] == build.mp4(1.0, shade=0)


def test_writer_refuses_what_cannot_be_read_back(tmp_path: Path) -> None:
    for key, media, message in (("a.b", {}, "dots"), ("a", {"exe": b""}, "media of type"), ("/a", {}, "slash")):
        with pytest.raises(ValueError, match=message):
            write_shards([Record(key=key, content=GOOD, media=media)], out=tmp_path)
    twice = [Record(key="a", content=GOOD, media={})] * 2
    with pytest.raises(ValueError, match="twice"):
        write_shards(twice, out=tmp_path)
    assert not list(tmp_path.glob("*.tar"))


def test_index_holds_facts_of_every_kind_of_clip(tmp_path: Path) -> None:
    index = indexed(write_shards(build.records(4), out=tmp_path)[0])
    assert [index.key(row) for row in range(4)] == [f"clip-{row:05d}" for row in range(4)]
    assert index.clips["has_video"].tolist() == [True, True, False, True]
    assert (index.clips["sound_samples"] > 0).tolist() == [True, False, True, False]
    assert index.clips["duration"].tolist() == [1.0, 2.0, 2.0, 1.0]
    assert len(index.items) == 28
    assert index.items["think"].sum() == 10  # five tasks of the two even records
    assert index.media_bytes(2) == (build.wav(), None)
    assert index.record(3)["items"][2]["answer"] == "number 3"
    assert isinstance(memoryview(index.clips.base).obj, mmap.mmap)


def test_index_is_rebuilt_when_the_shard_changes(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("a.json", record(text_only=True))])
    before = indexed(path)
    assert len(before.clips) == 1  # mapped now; afterwards it is told that the file has changed
    tar(path, [("a.json", record(text_only=True)), ("b.json", record(text_only=True))])
    assert open_index(path) is None
    after = indexed(path)
    assert (len(before.clips), len(after.clips)) == (1, 2)
    assert before.digest != after.digest


def test_index_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    members = [("a.json", record(text_only=True))]
    first, second = indexed(tar(tmp_path / "a.tar", members)), indexed(tar(tmp_path / "b.tar", members))
    other = indexed(tar(tmp_path / "c.tar", [("a.json", record(text_only=True, title="x"))]))
    assert first.digest == second.digest != other.digest


@pytest.mark.slow
def test_parallel_indexing_gives_the_same(tmp_path: Path) -> None:
    paths = write_shards(build.records(4), out=tmp_path / "a", per_shard=2)
    copies = write_shards(build.records(4), out=tmp_path / "b", per_shard=2)
    alone = ensure_indexes(paths, progress=False)
    together = ensure_indexes(copies, workers=2, progress=False)
    assert [index.digest for index in alone] == [index.digest for index in together]


BAD_RECORDS: dict[str, tuple[dict[str, bytes], str]] = {
    "broken": ({"json": b'{"items": [', "png": build.png()}, "broken_json"),
    "latin": ({"json": b'{"items": "\xff"}', "png": build.png()}, "broken_json"),
    "list": ({"json": b"[]", "png": build.png()}, "broken_json"),
    "deep": ({"json": b"[" * 100_000, "png": build.png()}, "broken_json"),
    "nojson": ({"png": build.png()}, "no_json"),
    "nomedia": ({"json": record()}, "no_media"),
    "noitems": ({"json": b"{}", "png": build.png()}, "no_items"),
    "empty": ({"json": record(), "mp4": b""}, "no_media"),
    "garbage": ({"json": record(), "mp4": b"x" * 5000}, "unreadable"),
    "moovless": ({"json": record(), "mp4": build.mp4()[:-600]}, "unreadable"),
    "twomedia": ({"json": record(), "png": build.png(), "jpg": build.png()}, "several_media"),
    "pickle": ({"json": record(), "png": build.png(), "pkl": b"x"}, "pickled"),
}


@pytest.mark.parametrize("name", sorted(BAD_RECORDS))
def test_damaged_record_is_quarantined_and_its_neighbours_stay(tmp_path: Path, name: str) -> None:
    members, reason = BAD_RECORDS[name]
    good = [("a.json", record()), ("a.png", build.png())]
    bad = [(f"{name}.{extension}", data) for extension, data in members.items()]
    last = [("z.json", record()), ("z.png", build.png())]
    path = tar(tmp_path / "x.tar", good + bad + last)
    index = indexed(path)
    assert [index.key(row) for row in range(len(index.clips))] == ["a", "z"]
    assert reasons(path) == {name: reason}


def test_bad_items_are_quarantined_one_by_one(tmp_path: Path) -> None:
    items = [{"task": "qa", "question": "what?"}, {"task": "caption", "answer": "red"}, {"task": "poem"}, "x",
             {"task": "caption", "answer": "red", "tags": "x"}]  # fmt: skip
    path = tar(tmp_path / "x.tar", [("a.json", record(items=items, text_only=True))])
    assert reasons(path) == {"a/0": "no_answer", "a/2": "unknown_task", "a/3": "bad_item", "a/4": "bad_tags"}
    assert indexed(path).items["number"].tolist() == [1]


@pytest.mark.parametrize("name", ["../a.json", "/a.json", "x/../../a.json"])
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    path = tar(tmp_path / "x.tar", [(name, record(text_only=True))])
    assert list(reasons(path).values()) == ["unsafe_name"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    path = tar(tmp_path / "x.tar", [("a.json", b"")], change=change)
    assert reasons(path) == {"a": "not_a_file"}


@pytest.mark.parametrize("order", ["a b a", "a a b", "a b a b", "a a a b"])
def test_first_record_of_a_key_is_kept(tmp_path: Path, order: str) -> None:
    parts = {key: [(f"{key}.png", build.png()), (f"{key}.json", record())] for key in "ab"}
    path = tar(tmp_path / "x.tar", [member for key in order.split() for member in parts[key]])
    index = indexed(path)
    assert [index.key(row) for row in range(len(index.clips))] == ["a", "b"]
    again = {key for key in "ab" if order.count(key) > 1}
    assert {problem.key: problem.reason for problem in index.problems()} == dict.fromkeys(again, "duplicate_key")


def test_hidden_files_are_no_records(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "x.tar",
        [("._a.json", b"\0\5\x16\7"), ("a.json", record(text_only=True)), (".x/b.json", record(text_only=True))],
    )
    assert reasons(path) == {}
    assert [indexed(path).key(row) for row in range(2)] == ["a", ".x/b"]


@pytest.mark.parametrize("keep", ["inside the last member", "between members", "without end mark"])
def test_tar_cut_short_is_noticed(tmp_path: Path, keep: str) -> None:
    path = write_shards(build.records(3), out=tmp_path)[0]
    groups, _ = read_groups(path)
    last = groups[-1].members[-1]
    end = {
        "inside the last member": last.offset + 10,
        "between members": groups[-1].members[0].offset - 512,
        "without end mark": last.offset + (last.size + 511) // 512 * 512,
    }[keep]
    path.write_bytes(path.read_bytes()[:end])
    build_index(path)
    found = reasons(path)
    assert found[path.name] in ("truncated_tar", "broken_tar")
    assert len(indexed(path).clips) == (3 if keep == "without end mark" else 2)


def test_records_behind_a_damaged_header_are_used_and_the_damage_is_told(tmp_path: Path) -> None:
    path = write_shards(build.records(3), out=tmp_path)[0]
    groups, _ = read_groups(path)
    content = bytearray(path.read_bytes())
    header = groups[1].members[0].offset - 512
    content[header : header + 512] = b"\x55" * 512
    path.write_bytes(content)
    assert reasons(path)[path.name] == "broken_tar"
    index = indexed(path)
    assert [index.key(row) for row in range(len(index.clips))] == [groups[0].key, groups[2].key]


def test_file_that_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 1000)
    assert reasons(tmp_path / "x.tar") == {"x.tar": "broken_tar"}


def test_shard_patterns(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"a-{number:03d}.tar").touch()
    assert [path.name for path in expand_shards(f"{tmp_path}/a-{{000..002}}.tar")] == [f"a-00{n}.tar" for n in range(3)]
    assert len(expand_shards(f"{tmp_path}/a-*.tar")) == 3
    for pattern in ("pipe:cat a.tar", "http://x/a.tar", f"{tmp_path}/b.tar", f"{tmp_path}/b-*.tar", ""):
        with pytest.raises(ValueError, match="shards"):
            expand_shards(pattern)


def test_record_keys_end_at_the_first_dot_of_the_last_part() -> None:
    assert record_key("dir.d/a.b.json") == "dir.d/a"


def test_interrupted_build_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", [("a.json", record(text_only=True))])
    monkeypatch.setattr(np, "save", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(ValueError, match=r"a\.tar\.index: cannot be written \(disk full\)"):
        build_index(path)
    assert not index_folder(path).exists()
    monkeypatch.undo()
    assert len(indexed(path).clips) == 1


def test_shards_in_a_folder_that_cannot_be_written_have_their_indexes_elsewhere(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(build.records(2 if name == "a" else 3), out=tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    place, paths = tmp_path / "indexes", sorted(tmp_path.glob("?/*.tar"))
    indexes = ensure_indexes(paths, progress=False, place=str(place))
    lengths = all_lengths(indexes, tokenizer=build.tokenizer(), style="plain", wording="brief", progress=False)
    assert [len(index.clips) for index in indexes] == [2, 3]
    assert [len(one.rows) > 0 for one in lengths] == [True, True]
    there = [path for path in sorted(tmp_path.rglob("*")) if place not in (path, *path.parents)]
    assert there == before
    assert open_index(paths[0]) is None
    opened = open_index(paths[0], place=str(place))
    assert opened is not None
    assert opened.digest == indexes[0].digest


def test_a_folder_for_indexes_in_the_environment_is_meant_for_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.shards(tmp_path / "mounted", count=2, per_shard=1)
    there = sorted((tmp_path / "mounted").iterdir())
    paths = [path for path in there if path.suffix == ".tar"]
    monkeypatch.setenv("ARCVIDEO_INDEX_DIR", str(tmp_path / "indexes"))
    ensure_indexes(paths, progress=False)
    assert sorted((tmp_path / "mounted").iterdir()) == there
    assert {path.suffix for path in (tmp_path / "indexes").iterdir()} == {".index", ".lock"}
    ensure_indexes(paths, progress=False, place=str(tmp_path / "own"))  # `data.index_dir` is nearer
    assert (tmp_path / "own").is_dir()


def test_the_report_finds_clips_whose_indexes_have_a_folder(tmp_path: Path) -> None:
    pattern = build.shards(tmp_path / "mounted", count=2, per_shard=1)
    ensure_indexes(sorted((tmp_path / "mounted").glob("*.tar")), progress=False, place=str(tmp_path / "indexes"))
    assert len(list(_indexes([str(pattern)], data={"index_dir": str(tmp_path / "indexes")}))) == 2


def test_a_folder_that_cannot_be_looked_into_is_not_taken_for_one_without_shards(tmp_path: Path) -> None:
    """A link to itself refuses everybody, root included."""
    (tmp_path / "data").symlink_to("data")
    with pytest.raises(ValueError, match="data: Too many levels of symbolic links"):
        expand_shards(f"{tmp_path}/data/*.tar")
    with pytest.raises(ValueError, match="no such tar file"):
        expand_shards(f"{tmp_path}/nowhere/*.tar")
