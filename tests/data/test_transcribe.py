"""Transcription with a tiny random Whisper: what it says is noise, where it goes is not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from whisper.model import ModelDimensions
from whisper.model import Whisper as Network

from arcvideo.data.shards import main
from arcvideo.shards.index import ensure_indexes
from arcvideo.shards.write import Record, write_shards
from tests.data import build


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    dims = ModelDimensions(80, 1500, 16, 2, 1, 51864, 448, 16, 2, 1)
    path = tmp_path_factory.mktemp("whisper") / "tiny.pt"
    torch.save({"dims": asdict(dims), "model_state_dict": Network(dims).state_dict()}, path)
    return str(path)


def test_transcribe_adds_timed_rows_and_leaves_media_alone(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = build.shards(tmp_path / "in", count=4, per_shard=2)
    ask = ["transcribe", pattern, "--model", model, "--out", str(tmp_path / "out")]
    assert main(ask) == 0
    made = sorted((tmp_path / "out").glob("*.tar"))
    before = ensure_indexes(sorted((tmp_path / "in").glob("*.tar")))
    heard = 0
    for old, new in zip(before, ensure_indexes(made), strict=True):
        assert not new.problems()
        for row in range(len(old.clips)):
            assert new.media_bytes(row) == old.media_bytes(row)
            items, known = new.record(row)["items"], old.record(row)["items"]
            assert items[: len(known)] == known
            for item in items[len(known) :]:
                heard += 1
                assert item["task"] == "asr"
                assert all(0 <= part["start"] <= part["end"] <= 30 for part in item["segments"])
                assert item["answer"] == " ".join(part["text"] for part in item["segments"])
    assert heard
    made[1].unlink()
    first = made[0].stat()
    capsys.readouterr()
    assert main(ask) == 0
    assert "2 shards, 1 done before" in capsys.readouterr().out
    assert made[1].exists()
    assert made[0].stat() == first
    assert main([*ask[:3], str(tmp_path / "none.pt"), "--out", str(tmp_path / "other")]) == 2


def test_file_that_takes_too_long_costs_its_row_only(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = build.shards(tmp_path / "in", count=2)
    ask = ["transcribe", pattern, "--model", model, "--out", str(tmp_path / "out")]
    assert main([*ask, "--deadline", "0.0001"]) == 0
    said = capsys.readouterr().out
    assert "2 records, 1 of them could not be heard" in said  # the other one is silent
    assert "timeout: clip-00000: not decoded within 0.0001 s" in said
    old, new = (ensure_indexes(sorted((tmp_path / part).glob("*.tar")))[0] for part in ("in", "out"))
    assert [new.record(row) for row in range(2)] == [old.record(row) for row in range(2)]


def test_a_record_with_several_media_is_left_alone_and_told(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [{"task": "qa", "question": "<video> <video> Which?", "answer": "shapes"}]
    record = Record(key="both", content={"items": items}, media={"0.mp4": build.mp4(1.0), "1.mp4": build.mp4(2.0)})
    (path,) = write_shards([record], out=tmp_path / "in", name="two")
    assert main(["transcribe", str(path), "--model", model, "--out", str(tmp_path / "out")]) == 0
    assert "1 records with several media got no transcript" in capsys.readouterr().out
    (index,) = ensure_indexes(sorted((tmp_path / "out").glob("*.tar")))
    assert index.record(0)["items"] == items
    assert index.media_count(0) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--out": "in"}, "a folder of their own"),
        ({"--deadline": "0"}, "deadline_seconds"),
        ({"--model": "broken.pt"}, "no checkpoint of openai-whisper"),
        ({"shards": "https://localhost:1/a.tar"}, "shard_cache"),
        ({"shards": "pipe:cat a.tar"}, "refused"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    pattern = build.shards(tmp_path / "in", count=1)
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    options = {"shards": pattern, "--model": model, "--out": str(tmp_path / "out")}
    options |= {
        name: str(tmp_path / value) if value in ("in", "broken.pt") else value for name, value in change.items()
    }
    shards = options.pop("shards")
    assert main(["transcribe", shards, *(word for pair in options.items() for word in pair)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
