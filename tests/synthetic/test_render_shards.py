from __future__ import annotations

import json
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from arcvideo.synthetic import write
from arcvideo.synthetic.__main__ import main
from arcvideo.synthetic.encode import encode
from arcvideo.synthetic.questions import letter_items, questions
from arcvideo.synthetic.script import draw_script
from arcvideo.synthetic.settings import TinyShortsSettings
from arcvideo.synthetic.write import write_dataset

SMALL = TinyShortsSettings(clips=5, test_clips=2, texts=2, seed=7, clips_per_shard=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    write_dataset(root, settings=SMALL, workers=1)
    return root


def test_shards_hold_media_then_record_of_every_clip(made):
    assert sorted(path.name for path in made.iterdir()) == [
        "dataset.json",
        "test-000000.tar",
        "text-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
    ]
    with tarfile.open(made / "train-000001.tar") as tar:
        names = tar.getnames()
        assert [name.split(".")[0] for name in names] == ["train-000003"] * 2 + ["train-000004"] * 2
        assert [name.endswith(".json") for name in names] == [False, True] * 2
        assert all((entry.mtime, entry.uid, entry.gid) == (0, 0, 0) for entry in tar.getmembers())
        script = draw_script(split="train", index=3, seed=7)
        record = json.loads(tar.extractfile("train-000003.json").read())
        assert tar.extractfile(names[0]).read() == encode(script)[1]
    assert record["id"] == "train-000003"
    assert record["source"] == "tiny_shorts"
    assert record["items"] == json.loads(json.dumps(questions(script)))
    assert record["truth"] == json.loads(json.dumps(asdict(script)))


def test_records_without_media_say_so(made):
    with tarfile.open(made / "text-000000.tar") as tar:
        assert tar.getnames() == ["text-000000.json", "text-000001.json"]
        record = json.loads(tar.extractfile("text-000001.json").read())
    assert record["text_only"] is True
    assert record["items"] == letter_items(seed=7, index=1)


def test_processes_do_not_change_the_bytes(made, tmp_path):
    again = write_dataset(tmp_path, settings=SMALL, workers=2)
    for name in again.shards:
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def test_a_finished_data_set_is_not_made_again(made):
    times = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    ticks: list[int] = []
    again = write_dataset(made, settings=SMALL, workers=1, progress=ticks.append)
    assert not again.written
    assert ticks == []
    assert again.digest == json.loads((made / "dataset.json").read_text())["digest"]
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == times


def test_other_settings_are_refused_and_leave_the_data_alone(made):
    before = (made / "train-000000.tar").read_bytes()
    with pytest.raises(ValueError, match="other settings"):
        write_dataset(made, settings=replace(SMALL, seed=8), workers=1)
    assert (made / "train-000000.tar").read_bytes() == before


def test_an_interrupted_or_damaged_data_set_is_made_again(tmp_path):
    settings = TinyShortsSettings(clips=1, test_clips=1, texts=1)
    first = write_dataset(tmp_path, settings=settings, workers=1)
    (tmp_path / "train-000000.tar").write_bytes(b"half")
    second = write_dataset(tmp_path, settings=settings, workers=1)
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "test-000000.tar").rename(tmp_path / "test-000000.tar.part")
    third = write_dataset(tmp_path, settings=settings, workers=1)
    assert second.written
    assert third.written
    assert first.digest == second.digest == third.digest
    assert not list(tmp_path.glob("*.part"))


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("")
    with pytest.raises(ValueError, match=r"thesis\.doc"):
        write_dataset(tmp_path, settings=SMALL, workers=1)


def test_the_command_reports_and_its_errors_name_the_remedy(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "d"), "--clips", "2", "--test-clips", "1", "--texts", "1", "--workers", "1"]
    assert main(arguments) == 0
    assert "4 records in 3 shards" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert main([*arguments, "--seed", "5"]) == 2
    assert "another directory" in capsys.readouterr().err
    assert main([*arguments[:2], "--clips", "-3"]) == 2
    assert "clips=-3" in capsys.readouterr().err


def test_what_stops_the_writer_stops_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this a full disk is told when the last clip of the shard is made."""
    asked = []

    class Pool(ProcessPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            asked.append(cancel_futures)
            super().shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(write, "ProcessPoolExecutor", Pool)
    with pytest.raises(OSError, match="full"), write._members(2):
        raise OSError("full")
    assert asked[0]


def test_a_command_that_was_killed_at_its_last_word_goes_on_and_two_at_once_make_one_data_set(tmp_path):
    out = tmp_path / "data"
    words = ["--out", str(out), "--clips", "2", "--test-clips", "1", "--texts", "1", "--workers", "1"]
    assert main(words) == 0
    want = (out / "train-000000.tar").read_bytes()
    (out / "dataset.json").rename(out / "dataset.json.part")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(main, [words, words])) == [0, 0]
    assert (out / "train-000000.tar").read_bytes() == want
    assert not list(out.glob("*.part"))
