"""Clips are found again however they were changed, strangers are not, and training refuses what it is measured on."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from arcvideo.data.shards import main
from arcvideo.fingerprints import sidecar
from arcvideo.fingerprints.descriptors import BANDS, SIDE, Prints
from arcvideo.fingerprints.guard import refuse_overlap
from arcvideo.fingerprints.match import overlaps
from arcvideo.fingerprints.sidecar import print_shard, read_shard, shard_folder
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.shards.index import ensure_indexes
from arcvideo.shards.write import Record, write_shards
from benchmarks.overlap import CHANGES, clips, printed


@pytest.fixture(scope="module")
def films() -> list[bytes]:
    return clips(6)


def test_changed_copies_are_found_and_strangers_are_not(films: list[bytes]) -> None:
    """Which half of a copy is the same is told, too."""
    changed = [(place, name, change(films[place])) for place in (0, 1) for name, change in CHANGES.items()]
    changed += [(-1, "stranger", film) for film in films[4:]]
    found = overlaps([printed(film) for film in films[:4]], [printed(film) for _, _, film in changed])
    kinds = {(one.first, changed[one.second][1]): one.kind for one in found}
    whole = dict.fromkeys(CHANGES, "picture and sound") | {"other_sound": "picture", "other_picture": "sound"}
    assert kinds == {(place, name): kind for place in (0, 1) for name, kind in whole.items()}
    assert all(changed[one.second][0] == one.first for one in found)
    for one in found:
        if changed[one.second][1] == "trimmed":
            assert one.picture is not None
            assert one.picture.offset == pytest.approx(-1.3, abs=0.3)  # two pictures a second


def blank(seconds: int) -> Prints:
    return Prints(
        picture=np.zeros((2 * seconds, SIDE * SIDE * 3), np.uint8), sound=np.zeros((16 * seconds, BANDS), np.uint8)
    )


def test_black_and_silent_clips_are_like_nothing() -> None:
    assert overlaps([blank(9), blank(5)], [blank(9)]) == []


def shards(folder: Path, films: Sequence[bytes], *, name: str) -> Path:
    items = [{"task": "caption", "answer": "shapes"}]
    records = [Record(key=f"{name}-{n}", content={"items": items}, media={"mp4": film}) for n, film in enumerate(films)]
    (path,) = write_shards(records, out=folder, name=name)
    return path


def test_every_medium_of_a_record_is_looked_at(tmp_path: Path, films: list[bytes]) -> None:
    items = [{"task": "qa", "question": "<video> <video> Which?", "answer": "shapes"}]
    both = Record(key="both", content={"items": items}, media={"0.mp4": films[0], "1.mp4": films[1]})
    (path,) = write_shards([both], out=tmp_path / "two", name="two")
    other = shards(tmp_path / "one", films[1:3], name="one")
    (held,), (index,) = (ensure_indexes([shard], progress=False) for shard in (path, other))
    with pytest.raises(ValueError, match=r"one-0 which is both there, byte for byte"):
        refuse_overlap(data(one=other), held_out=str(path))
    printed = print_shard(held)
    assert printed.keys == ("both.0", "both.1")
    pairs = [(one.first, one.second) for one in overlaps(printed.prints, print_shard(index).prints)]
    assert pairs == [(1, 0)]


def test_two_that_keep_fingerprints_of_a_shard_at_once_both_end_well(
    tmp_path: Path, films: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (index,) = ensure_indexes([shards(tmp_path, films[:2], name="a")], progress=False)
    folder, remove, both = shard_folder(index.shard), shutil.rmtree, threading.Barrier(2)

    def removed(path: Path, **how: Any) -> None:
        remove(path, **how)
        if path == folder:
            with suppress(threading.BrokenBarrierError):
                both.wait(timeout=1)  # so that neither has its name yet

    monkeypatch.setattr(sidecar.shutil, "rmtree", removed)
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: print_shard(index, again=True), range(2))
    assert one.keys == other.keys
    kept = read_shard(index)
    assert kept is not None
    assert kept.keys == one.keys
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_takes_no_fingerprints_is_told_and_ends_nothing(
    tmp_path: Path, films: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (index,) = ensure_indexes([shards(tmp_path, films[:2], name="a")], progress=False)
    folder = shard_folder(index.shard)
    folder.with_name(f"{folder.name}.lock").mkdir()
    assert len(print_shard(index).keys) == 2
    assert f"{folder}: cannot be written (Is a directory), so they are made again" in capsys.readouterr().err


def test_fingerprints_are_kept_beside_a_shard_while_its_content_is_the_same(tmp_path: Path, films: list[bytes]) -> None:
    path = shards(tmp_path, films[:2], name="a")
    (index,) = ensure_indexes([path], progress=False)
    assert read_shard(index) is None
    made = print_shard(index)
    kept = read_shard(index)
    assert kept is not None
    assert kept.keys == made.keys == ("a-0", "a-1")
    for one, other in zip(kept.prints, made.prints, strict=True):
        assert np.array_equal(one.picture, other.picture)
        assert np.array_equal(one.sound, other.sound)
    for name in ("sound.npy", "meta.json"):
        file = shard_folder(path) / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-3] + b"xyz")
        assert read_shard(index) is None, f"{name} was changed"
        file.write_bytes(whole)
    assert read_shard(index) is not None
    path.unlink()
    shards(tmp_path, films[2:4], name="a")
    assert read_shard(ensure_indexes([path], progress=False)[0]) is None


def test_a_clip_that_cannot_be_decoded_is_told_and_hides_no_other(
    tmp_path: Path, films: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.mp4").write_bytes(films[0])
    (tmp_path / "bad.mp4").write_bytes(films[0][:2000])
    assert main(["fingerprint", str(tmp_path), "--workers=1"]) == 0
    said = capsys.readouterr().out
    assert "2 clips, 1 with picture, 1 with sound" in said
    assert "not decoded: bad.mp4" in said


def test_the_command_finds_a_folder_in_shards(
    tmp_path: Path, films: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    for number in (0, 1):
        (held / f"clip{number}.mp4").write_bytes(films[number])
    train = shards(tmp_path, [films[4], CHANGES["trimmed"](films[1])], name="train")
    words = ["overlap", str(held), str(train), "--workers=1", "--out", str(tmp_path / "pairs.jsonl")]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "train-1 = clip1.mp4: picture and sound" in said
    assert "1 of 2 clips are in train-000000.tar, as 1 of its 2" in said
    (row,) = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert (row["first"], row["second"], row["kind"]) == ("clip1.mp4", "train-1", "picture and sound")
    clean = shards(tmp_path, films[4:], name="clean")
    assert main(["overlap", str(held), str(clean), "--workers=1"]) == 0


@dataclass
class Data:
    """What the check reads of `data`."""

    sources: dict[str, Any]
    shard_cache: ShardCacheSettings = field(default_factory=ShardCacheSettings)
    workers: int = 0
    index_dir: str | None = None


def data(**sources: Path) -> Data:
    return Data(sources={name: SimpleNamespace(shards=str(path)) for name, path in sources.items()})


def test_a_source_with_the_same_bytes_is_refused_without_any_fingerprints(tmp_path: Path, films: list[bytes]) -> None:
    held = shards(tmp_path, films[:2], name="held")
    good, bad = shards(tmp_path, films[2:4], name="good"), shards(tmp_path, films[1:3], name="bad")
    assert refuse_overlap(data(good=good), held_out=str(held)) == ""
    assert refuse_overlap(data(bad=bad), held_out="") == ""
    told = r"^data\.sources\.bad: holds 1 clips of evaluation\.shards, the first bad-0 which is held-1 there, byte for"
    with pytest.raises(ValueError, match=told) as said:
        refuse_overlap(data(good=good, bad=bad), held_out=str(held))
    assert "data.overlap=allow" in str(said.value)


def test_a_changed_copy_is_refused_once_there_are_fingerprints(tmp_path: Path, films: list[bytes]) -> None:
    held = shards(tmp_path, films[:2], name="held")
    bad = shards(tmp_path, [films[3], CHANGES["encoded_anew"](films[0])], name="bad")
    assert refuse_overlap(data(bad=bad), held_out=str(held)) == ""
    assert main(["fingerprint", str(held), "--workers=1"]) == 0
    told = refuse_overlap(data(bad=bad), held_out=str(held))
    assert told == (
        "overlap: bad compared with evaluation.shards by bytes alone; by picture and sound: "
        "python -m arcvideo.data.shards overlap HELD_OUT SOURCE\n"
    )
    assert main(["fingerprint", str(bad), "--workers=1"]) == 0
    with pytest.raises(
        ValueError, match=r"^data\.sources\.bad: holds 1 clips .* the first bad-1 = held-0: picture and"
    ):
        refuse_overlap(data(bad=bad), held_out=str(held))
