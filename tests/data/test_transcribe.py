"""Transcription with a tiny random Whisper: what it says is noise, where it goes is not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from whisper.model import ModelDimensions
from whisper.model import Whisper as Network

from arcvideo.data.index import ensure_indexes
from arcvideo.data.shards import main
from tests.data import build


def test_transcribe_adds_timed_rows_and_leaves_media_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    dims = ModelDimensions(80, 1500, 16, 2, 1, 51864, 448, 16, 2, 1)
    torch.save({"dims": asdict(dims), "model_state_dict": Network(dims).state_dict()}, tmp_path / "tiny.pt")
    pattern = build.shards(tmp_path / "in", count=4, per_shard=2)
    ask = ["transcribe", pattern, "--model", str(tmp_path / "tiny.pt"), "--out", str(tmp_path / "out")]
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
