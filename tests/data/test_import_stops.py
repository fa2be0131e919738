"""Imports that are killed, run into a full disk, or find their source changed; and what they keep in memory."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import webdataset

from arcvideo.data import import_command
from arcvideo.data.importers import sources
from arcvideo.data.importers.ledger import Ledger
from arcvideo.data.importers.sources import Opened
from arcvideo.data.shards import main
from arcvideo.media.errors import MediaError
from arcvideo.shards.write import Record, ShardWriter, room_of_end, tar_size, write_shards
from tests.data import build

CLIPS = 6


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Rows about six sounds, of which one is damaged and one is missing."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(CLIPS):
        (folder / f"c{number}.wav").write_bytes(b"broken" if number == 2 else build.wav(1.0 + number / 10))
    items = [{"task": "caption", "answer": "red"}]
    rows = [{"media": f"c{number}.wav", "items": items} for number in range(CLIPS + 1)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def words(source: Path, out: Path, *more: str) -> list[str]:
    where = ["--annotations", str(source / "rows.jsonl"), "--videos", str(source), "--out", str(out)]
    return ["import", "--format", "records", *where, "--per-shard", "2", *more]


def written(out: Path) -> dict[str, bytes]:
    """Name -> bytes of the shards, their digests and the list of problems."""
    files = [*out.glob("*.tar"), *out.glob("*.sha256"), *out.glob("*.quarantine.jsonl")]
    return {path.name: path.read_bytes() for path in files}


def in_child(work: Callable[[], object]) -> int:
    """Return how a forked process ended that did something: its exit status, or minus the signal that killed it."""
    pid = os.fork()
    if not pid:
        status = 70
        try:
            os.setpgid(0, 0)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def killed_at(instant: int, arguments: list[str]) -> int:
    """Import in a process that is killed before the so-manieth time that it changes something on the disk."""

    def work() -> None:
        left = [instant]

        def before(event: str, details: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.truncate", "os.mkdir"):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        def synced(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
            before("os.rename", ())
            real(descriptor)

        os.fsync = synced
        real_write = ShardWriter._write

        def write(shard: ShardWriter, data: bytes) -> None:
            before("os.rename", ())
            real_write(shard, data)

        ShardWriter._write = write  # type: ignore[method-assign]
        sys.addaudithook(before)
        import_command.ensure_indexes = lambda *_, **__: []  # type: ignore[assignment]
        main(arguments)

    return in_child(work)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_an_import_killed_before_any_change_on_disk_ends_as_if_it_was_not(source: Path, tmp_path: Path) -> None:
    assert main(words(source, tmp_path / "whole", "--workers", "0")) == 0
    whole = written(tmp_path / "whole")
    assert len([name for name in whole if name.endswith(".tar")]) == 3
    for instant in count():
        out = tmp_path / f"out-{instant}"
        status = killed_at(instant, words(source, out, "--workers", "0"))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
        assert killed_at(sys.maxsize, words(source, out, "--workers", "0")) == 0
        assert written(out) == whole, f"killed at instant {instant}"
        assert {path: path.stat().st_mtime_ns for path in kept} == kept  # finished shards are not written again
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert instant > 50


@pytest.mark.slow
def test_a_second_kill_and_two_workers_end_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    assert main(words(source, tmp_path / "whole", "--workers", "0")) == 0
    whole, out = written(tmp_path / "whole"), tmp_path / "out"
    for instant in (45, 18, 12):
        assert killed_at(instant, words(source, out, "--workers", "0")) == -signal.SIGKILL
    import_one = words(source, out, "--workers", "2")
    cores = os.sched_getaffinity
    try:
        os.sched_getaffinity = lambda _: {0, 1}  # type: ignore[assignment, return-value]
        assert main(import_one) == 0
    finally:
        os.sched_getaffinity = cores
    assert written(out) == whole
    assert main(words(source, out, "--workers", "0")) == 0  # nothing is left to do
    assert written(out) == whole


def stopped(source: Path, out: Path) -> None:
    """Begin an import, and kill it when two shards are finished."""
    instant = 0
    while len(list(out.glob("*.tar"))) < 2:
        instant += 8
        assert killed_at(instant, words(source, out, "--workers", "0")) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda source: (source / "c1.wav").write_bytes(build.wav(2.0)), "c1.wav: changed since shard-000000.tar"),
        (lambda source: os.utime(source / "c3.wav", (1, 1)), "c3.wav: changed since shard-000001.tar"),
        (lambda source: (source / "c0.wav").unlink(), "c0.wav: changed since shard-000000.tar"),
        (lambda source: (source / "rows.jsonl").open("a").write("\n"), "rows.jsonl: the annotations changed"),
    ],
)
def test_a_source_that_changed_is_told_and_not_mixed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], told: str
) -> None:
    out = tmp_path / "out"
    stopped(source, out)
    before = {name: data for name, data in written(out).items() if name.endswith(".tar")}
    change(source)
    assert main(words(source, out, "--workers", "0")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told in line
    assert {name: data for name, data in written(out).items() if name.endswith(".tar")} == before


@pytest.mark.slow
def test_other_options_are_told_and_a_clip_that_vanished_before_its_turn_is_listed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    stopped(source, out)
    assert main([*words(source, out, "--workers", "0"), "--per-shard", "3"]) == 2
    assert "--per-shard: was 2, is 3" in capsys.readouterr().err
    (source / "c5.wav").unlink()
    assert main(words(source, out, "--workers", "0")) == 0
    reasons = {row["key"]: row["reason"] for row in map(json.loads, (out / "shard.quarantine.jsonl").open())}
    assert reasons == {"line 3/0": "unreadable", "line 6/0": "no_media", "line 7/0": "no_media"}


def test_a_file_that_changes_between_its_examination_and_its_copy_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Opened.pieces

    def changing(self: Opened) -> Any:
        if self.path.name == "c1.wav":
            data = bytearray(self.path.read_bytes())
            data[-2] ^= 1
            facts = self.path.stat()
            self.path.write_bytes(data)
            os.utime(self.path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # nothing but its content tells
        if self.path.name == "c3.wav":
            self.path.write_bytes(self.path.read_bytes()[:100])
        return real(self)

    monkeypatch.setattr(Opened, "pieces", changing)
    out = tmp_path / "out"
    assert main(words(source, out, "--workers", "0")) == 0
    lines = [json.loads(line) for line in (out / "shard.quarantine.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines if "while it was imported" in line["detail"]] == ["unreadable"] * 2
    names = []
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            names += tar.getnames()
    assert sorted(names) == sorted(f"c{number}.{kind}" for number in (0, 4, 5) for kind in ("json", "wav"))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_import_goes_on_when_there_is_room(source: Path, tmp_path: Path) -> None:
    assert main(words(source, tmp_path / "whole", "--workers", "0")) == 0
    whole = written(tmp_path / "whole")
    sizes = sorted(len(data) for name, data in whole.items() if name.endswith(".tar"))
    out, said = tmp_path / "out", tmp_path / "said"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[1], sizes[1]))
        sys.stderr = said.open("w", buffering=1)
        os._exit(main(words(source, out, "--workers", "0")))

    assert in_child(limited) == 2
    (line,) = [line for line in said.read_text().splitlines() if line.startswith("error: ")]
    assert "the disk is full" in line
    assert "start the same command again" in line
    assert main(words(source, out, "--workers", "0")) == 0
    assert written(out) == whole


def test_the_room_that_is_needed_is_told_before_a_byte_is_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(import_command.shutil, "disk_usage", lambda _: free)
    assert main(words(source, out, "--workers", "0")) == 2
    error = capsys.readouterr().err
    assert "needed" in error
    assert "free: make room for" in error
    assert [path.name for path in out.iterdir()] == ["shard.quarantine.jsonl"]


def test_two_imports_of_one_name_do_not_write_at_once(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "shard.import.jsonl"
    with (
        Ledger(path, request={}),
        pytest.raises(ValueError, match="another import is writing"),
        Ledger(path, request={}),
    ):
        pass


def test_another_import_leaves_the_list_of_the_one_that_is_there(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words(source, out, "--workers", "0")) == 0
    before = written(out)
    (source / "rows.jsonl").write_text("no row\n")
    assert main(words(source, out, "--workers", "0")) == 2
    assert "the annotations changed since this import began" in capsys.readouterr().err
    with Ledger(tmp_path / "new" / "shard.import.jsonl", request={}):
        (tmp_path / "new" / "shard.quarantine.jsonl").write_text("theirs")
        assert main(words(source, tmp_path / "new", "--workers", "0")) == 2
    assert "another import is writing" in capsys.readouterr().err
    assert written(out) == before
    assert (tmp_path / "new" / "shard.quarantine.jsonl").read_text() == "theirs"


def test_an_index_that_finds_no_room_is_one_line_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", tmp_path / "said"
    assert main(words(source, out, "--workers", "0")) == 0
    for shard in out.glob("*.index"):
        shutil.rmtree(shard)
    left = out / ".shard-000000.tar.index.partial"  # by one that was killed
    left.mkdir()
    (left / "clips.npy").write_bytes(b"half")

    def limited() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        sys.stderr = io.StringIO()
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, most))
        status = main(["index", str(out / "shard-000000.tar"), "--workers", "0"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        said.write_text(sys.stderr.getvalue())
        os._exit(status)

    assert in_child(limited) == 2
    assert "shard-000000.tar.index: cannot be written (File too large); make room and start again" in said.read_text()
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert main(["index", str(out / "shard-000000.tar"), "--workers", "0"]) == 0


def test_media_are_copied_a_piece_at_a_time(tmp_path: Path) -> None:
    size = 64 << 20
    with open(tmp_path / "big.mp4", "wb") as file:
        file.truncate(size)

    def grown() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        record = Record(key="a", content={}, media={"mp4": sources.opened(tmp_path / "big.mp4")})
        write_shards([record], out=tmp_path / "out")
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10

    assert in_child(lambda: os._exit(grown() >= size // 8)) == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    answer = "red " * 500

    def grown(rows: int) -> int:
        """Megabytes at most, of an import of so many rows."""
        folder, readable, writable = tmp_path / str(rows), *os.pipe()
        folder.mkdir()
        turns = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": answer}]
        with open(folder / "rows.json", "w") as file:
            file.write("[" + ",".join(json.dumps({"id": n, "messages": turns}) for n in range(rows)) + "]")
        where = ["--annotations", str(folder / "rows.json"), "--videos", str(folder), "--out", str(folder / "out")]

        def work() -> None:
            import_command.ensure_indexes = lambda *_, **__: []  # type: ignore[assignment]
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            status = main(["import", "--format", "sharegpt", *where, "--task", "qa", "--workers", "0"])
            peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
            os.write(writable, f"{status} {peak.split()[1]}".encode())

        assert in_child(work) == 0
        status, kilobytes = os.read(readable, 100).split()
        assert int(status) == 0
        return int(kilobytes) << 10

    few, many = grown(2000), grown(20_000)
    assert many - few < 18_000 * len(answer) // 4  # all rows take at least as much as their answers


def test_shards_are_those_of_webdatasets_writer(tmp_path: Path) -> None:
    long = "folder/" * 12 + "caf\u00e9" * 10
    records = [Record(key=key, content={"items": []}, media={"mp4": b"x" * 700, "wav": b""}) for key in ("a/b", long)]
    (path,) = write_shards(records, out=tmp_path)
    with open(tmp_path / "other.tar", "wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
        for record in records:
            tar.write({"__key__": record.key, **record.media, "json": b'{"items": []}'})
    assert path.read_bytes() == (tmp_path / "other.tar").read_bytes()
    parts = {"mp4": 700, "wav": 0, "json": 13}
    assert sum(tar_size(record.key, parts) for record in records) + room_of_end() >= path.stat().st_size


def test_what_fails_half_way_leaves_nothing_in_its_shard(tmp_path: Path) -> None:
    class Fails:
        size = 2000

        def pieces(self) -> Any:
            yield b"x" * 1000
            raise MediaError("unreadable", "x")

    good = Record(key="a", content={"items": []}, media={"mp4": b"x"})
    with ShardWriter(tmp_path / "x.tar") as shard:
        shard.add(good)
        with pytest.raises(MediaError):
            shard.add(Record(key="b", content={}, media={"wav": b"y", "png": Fails()}))
        shard.add(Record(key="c", content={}, media={}))
        shard.complete()
        shard.publish()
    (other,) = write_shards([good, Record(key="c", content={}, media={})], out=tmp_path / "other")
    assert shard.path.read_bytes() == other.read_bytes()
