from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from arcvideo.data.shards import main
from arcvideo.feed.source import Source
from arcvideo.shards.write import Record, write_shards
from tests.data import build

MEDIA = Path(os.environ.get("ARCVIDEO_TEST_MEDIA", Path(__file__).resolve().parents[3] / "shared")) / "data"


def row(number: int, video: str, question: str = "see <video>\nwhat?", answer: str | None = "red") -> dict[str, object]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": number, "video": video, "conversations": turns}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three videos, one of them silent with a sound file beside it, and rows good and bad."""
    (tmp_path / "a.mp4").write_bytes(build.mp4())
    (tmp_path / "b.1.mp4").write_bytes(build.mp4(2.0, sound=False))
    (tmp_path / "b.1.wav").write_bytes(build.wav())
    (tmp_path / "a.wav").write_bytes(build.wav(1.0))
    (tmp_path / "broken.mp4").write_bytes(b"x" * 1000)
    rows = [
        row(0, "a.mp4"),
        row(1, "a.mp4", question="what?"),
        row(2, "b.1.mp4", question="see <video>what?"),
        row(3, "missing.mp4"),
        row(4, "broken.mp4"),
        row(5, "a.mp4", answer=None),
        row(6, "../a.mp4"),
        {"id": 7, "video": "a.mp4", "conversations": [{"from": "human", "value": "what?"}]},
    ]
    text = "\n".join(json.dumps(line) for line in rows) + "\n{broken\n\n"
    (tmp_path / "rows.jsonl").write_text(text)
    return tmp_path


def import_arc(folder: Path) -> int:
    where = ["--annotations", str(folder / "rows.jsonl"), "--videos", str(folder), "--audio", str(folder)]
    return main(["import", "--format", "arc", *where, "--out", str(folder / "out"), "--workers", "0"])


def test_import_uses_every_row_or_says_why_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_arc(folder) == 0
    said = capsys.readouterr().out
    assert "9 rows: 3 used in 1 shards, 6 quarantined" in said
    assert "1 questions have <video> without a newline" in said
    listed = map(json.loads, (folder / "out" / "shard.quarantine.jsonl").read_text().splitlines())
    assert {problem["key"]: problem["reason"] for problem in listed} == {
        "3": "no_media",
        "4": "unreadable",
        "5": "no_answer",
        "6": "unsafe_name",
        "7": "no_answer",
        "line 9": "broken_json",
    }


def test_imported_shards_train(folder: Path) -> None:
    import_arc(folder)
    settings = build.settings(str(folder / "out" / "*.tar"), source_items_per_clip=0)
    data = Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=0)
    batches = [batch for step in range(data.steps_per_epoch) for batch in data.batches(step)]
    assert sorted(key for batch in batches for key in batch.keys) == ["a/0", "a/1", "b_1/0"]
    # One row says where the frames stand in its sentence, the other does not: two prefixes of the same clip.
    assert sum(len(batch.media) for batch in batches) == 3
    assert all(media.has_audio and media.has_video for batch in batches for media in batch.media)
    (index,) = data.tables[0].indexes
    assert index.media_bytes(0) == ((folder / "a.mp4").read_bytes(), None)
    assert index.media_bytes(1) == ((folder / "b.1.mp4").read_bytes(), (folder / "b.1.wav").read_bytes())


def test_inspect_shows_what_is_supervised(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_arc(folder)
    capsys.readouterr()
    shard = str(folder / "out" / "shard-000000.tar")
    assert main(["inspect", shard, "--key", "a", "--image-size", "64"]) == 0
    said = capsys.readouterr().out
    assert "picture  yes; 2 frames (2, 3, 64, 64)" in said
    # The two rows place the frames differently: each question stands behind the prefix it is trained with.
    assert [line.split("  ")[-1] for line in said.splitlines() if line.lstrip()[:1].isdigit()] == [
        "the clip, seen by those below",
        "a/0 summary",
        "the clip, seen by those below",
        "a/1 summary",
    ]
    assert "--- segment 0: <|startoftext|>see <vid><img><IMG x4></img>" in said
    assert "--- segment 2: <|startoftext|><vid><img><IMG x4></img>" in said
    assert "[[red<|endoftext|>]]" in said
    assert "00:00:00-00:00:01, 00:00:01-00:00:02" in said
    assert main(["inspect", shard, "--key", "nope"]) == 2
    assert "no usable record 'nope'" in capsys.readouterr().err


def test_inspect_counts_equal_frames_and_prints_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards([Record(key="a", content={"items": build.items(0)}, media={"mp4": build.mp4(9.0)})], out=tmp_path)
    ask = ["inspect", str(tmp_path / "shard-000000.tar"), "--image-size", "64"]
    assert main(ask) == 0
    said = capsys.readouterr().out
    assert "<vid><img><IMG x4></img><img> ... 7 more like this ... <IMG x4></img></vid>" in said
    assert "00:00:02-00:00:03, ..., 00:00:07-00:00:08, 00:00:08-00:00:09" in said
    assert main([*ask, "--ids"]) == 0
    prefix = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("--- segment 0"))
    assert prefix.count(" x4 ") == 2
    assert all(
        word.isdigit()
        for word in prefix.partition(":")[2].replace("... 7 more like this ...", "").replace(" x4", "").split()
    )


@pytest.mark.parametrize("number", range(4))
def test_inspect_draws_every_kind_of_clip(tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    build.shards(tmp_path, count=4, per_shard=4)
    shard, key = str(tmp_path / "shard-000000.tar"), f"clip-{number:05d}"
    assert main(["inspect", shard, "--key", key, "--image-size", "64", "--image", str(tmp_path)]) == 0
    assert f"{key}.png" in capsys.readouterr().out
    with Image.open(tmp_path / f"{key}.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    # A spectrogram has hundreds of colours; grey frames and text have few.
    assert (len(colours) > 400) == (number in (0, 2))


def test_verify_index_and_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = build.shards(tmp_path, count=4)
    assert main(["index", pattern, "--workers", "1"]) == 0
    assert "4 clips, 28 items, 0 quarantined" in capsys.readouterr().out
    assert main(["verify", pattern]) == 0
    assert main(["stats", pattern, "--image-size", "64", "--token-budget", "512"]) == 0
    said = capsys.readouterr().out
    assert "mcq" in said
    assert "needs:audio" in said
    assert "100 problems" not in said


def test_verify_fails_on_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(build.shards(tmp_path, count=3).replace("*", "000000"))
    path.write_bytes(path.read_bytes()[:-20_000])
    assert main(["verify", str(path)]) == 1
    assert "truncated" in capsys.readouterr().out


def test_commands_name_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(tmp_path / "none.tar")]) == 2
    assert main(["inspect", "pipe:touch /tmp/x"]) == 2
    assert "refused" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["arc", "arc-meta", "activitynet", "charades-sta", "records", "sharegpt", "webvid"])
@pytest.mark.parametrize("content", [None, "", "\0\1binary", "[1, 2]", "a,b\n"])
def test_files_that_are_no_annotations_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, content: str | None
) -> None:
    file = tmp_path / "rows"
    if content is not None:
        file.write_text(content)
    where = ["--annotations", str(file), "--videos", str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main(["import", "--format", kind, *where]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(tmp_path) in errors[0]


@pytest.mark.parametrize("change", [("--per-shard", "0"), ("--workers", "-1"), ("--name", "../x"), ("--out", "rows")])
def test_import_refuses_settings_that_cannot_work(
    folder: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str]
) -> None:
    options = {"--annotations": str(folder / "rows.jsonl"), "--videos": str(folder), "--out": str(folder / "out")}
    (folder / "rows").touch()
    value = str(folder / "rows") if change[0] == "--out" else change[1]
    words = [word for pair in ({"--workers": "0"} | options | {change[0]: value}).items() for word in pair]
    assert main(["import", "--format", "arc", *words]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["index", "verify", "stats", "inspect"])
@pytest.mark.parametrize("content", [b"", b"x", bytes(10240)])
def test_tars_without_records_are_told_not_traced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, content: bytes
) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    status = main([command, str(tmp_path / "a.tar"), *["--workers", "0"] * (command == "index")])
    said = capsys.readouterr()
    assert status in (0, 1, 2)
    assert (status == 2) == ("error: " in said.err)
    assert content.strip(b"\0") == b"" or "tar" in said.out + said.err


@pytest.mark.skipif(not (MEDIA / "shorts").is_dir(), reason=f"real short videos are not in {MEDIA}/shorts")
def test_real_shorts_import_and_train(tmp_path: Path) -> None:
    shorts = MEDIA / "shorts"
    where = ["--annotations", str(shorts / "annotations.jsonl"), "--videos", str(shorts), "--audio", str(shorts)]
    assert main(["import", "--format", "arc", *where, "--out", str(tmp_path), "--workers", "0"]) == 0
    settings = build.settings(str(tmp_path / "*.tar"), token_budget=4096)
    data = Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=0)
    (batch,) = data.batches(0)
    assert sorted(media.frame_count for media in batch.media) == [15, 17, 30]
    assert all(media.has_audio and media.has_video for media in batch.media)
    assert len(batch.keys) == 3
