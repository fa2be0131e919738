"""The formats that people have, one row of each as its set writes it, through the command line."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet

from arcvideo.data.shards import main
from arcvideo.shards.index import ShardIndex, ensure_indexes
from tests.data import build


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "a.mp4").write_bytes(build.mp4(3.0))
    (folder / "silent.mp4").write_bytes(build.mp4(2.0, sound=False))
    (folder / "s.wav").write_bytes(build.wav(2.0))
    (folder / "v_1.MOV").write_bytes(build.mp4(2.0))
    (folder / "still.png").write_bytes(build.png())
    (folder / "caf\u0065\u0301.mp4").write_bytes(build.mp4(2.0))  # as a Mac writes it
    (folder / "strange.bin").write_bytes(build.mp4(1.0))
    return folder


def imported(
    media: Path, tmp_path: Path, kind: str, content: bytes | str, *words: str, name: str = "rows.jsonl"
) -> int:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return main(["import", "--format", kind, "--annotations", str(path), "--videos", str(media),
                 "--out", str(tmp_path / "out"), "--workers", "0", *words])  # fmt: skip


def records(tmp_path: Path, pattern: str = "shard-0*.tar") -> dict[str, dict[str, Any]]:
    """Key -> record, with the types of its media."""
    found: dict[str, dict[str, Any]] = {}
    for shard in sorted((tmp_path / "out").glob(pattern)):
        (index,) = ensure_indexes([shard], progress=False)
        for row in range(len(index.clips)):
            found[index.key(row)] = {**index.record(row), "types": _types(index, row)}
    return found


def _types(index: ShardIndex, row: int) -> list[str]:
    with tarfile.open(index.shard) as tar:
        names = [name for name in tar.getnames() if name.startswith(index.key(row) + ".")]
    return sorted(name.rpartition(".")[2] for name in names if not name.endswith(".json"))


def refused(tmp_path: Path, name: str = "shard") -> dict[str, str]:
    lines = (tmp_path / "out" / f"{name}.quarantine.jsonl").read_text().split("\n")
    return {row["key"]: row["reason"] for row in map(json.loads, filter(None, lines))}


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def asked(text: str, answer: str = "A cat.") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


CONVERSATIONS: dict[str, tuple[Mapping[str, Any], str, list[str]]] = {
    "llama-factory, video and sound": (
        {"messages": asked("<video><audio>What?"), "videos": ["silent.mp4"], "audios": ["s.wav"]},
        "<video>What?", ["mp4", "wav"],
    ),
    "llama-factory, system and tools": (
        {"conversations": [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "A cat."}],
         "system": "Be brief.", "tools": "[]", "videos": ["a.mp4"]},
        "Be brief.\n<video>What?", ["mp4"],
    ),
    "sound alone": ({"messages": asked("<audio>What?"), "audios": ["s.wav"]}, "<video>What?", ["wav"]),
    "ms-swift, objects for media": (
        {"messages": asked("<video>What?"), "videos": [{"path": "a.mp4"}]}, "<video>What?", ["mp4"],
    ),
    "ms-swift, query and response": (
        {"query": "<video>What?", "response": "A cat.", "history": [], "videos": ["a.mp4"]}, "<video>What?", ["mp4"],
    ),
    "alpaca": ({"instruction": "What?", "input": "<video>", "output": "A cat.", "videos": ["a.mp4"]},
               "What?\n<video>", ["mp4"]),
    "openai, parts": (
        {"messages": [{"role": "developer", "content": "Be brief."},
                      {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "a.mp4"}},
                                                   {"type": "text", "text": "What?"}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]},
        "Be brief.\n<video>\nWhat?", ["mp4"],
    ),
    "capital roles": (
        {"conversations": [{"from": "Human", "value": "What?"}, {"from": "GPT", "value": "A cat."}], "video": "a.mp4"},
        "What?", ["mp4"],
    ),
    "llava-video": (
        {"id": "x", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
         "data_source": "0_30_s", "video": "./a.mp4"},
        "<video>\nWhat?", ["mp4"],
    ),
    "qwen's marks": (
        {"messages": asked("<|vision_start|><|video_pad|><|vision_end|>What?"), "videos": ["a.mp4"]},
        "<video>What?", ["mp4"],
    ),
    "a type nobody knows": ({"messages": asked("What?"), "videos": ["strange.bin"]}, "What?", ["media"]),
    "accents of a Mac": ({"messages": asked("What?"), "videos": ["caf\u00e9.mp4"]}, "What?", ["mp4"]),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
def test_a_conversation_of_each_dialect_becomes_one_record(media: Path, tmp_path: Path, name: str) -> None:
    row, question, types = CONVERSATIONS[name]
    assert imported(media, tmp_path, "sharegpt", lines(row), "--task", "qa") == 0
    ((record),) = records(tmp_path).values()
    (item,) = record["items"]
    assert (item["question"], item["answer"], record["types"]) == (question, "A cat.", types)


def test_tools_are_ignored_aloud_and_a_sound_that_is_not_needed_too(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ({"messages": asked("What?"), "videos": ["a.mp4"], "audios": ["s.wav"], "tools": "[{}]"},)
    assert imported(media, tmp_path, "llama-factory", lines(*rows)) == 0
    said = capsys.readouterr().out
    assert "ignored  tools of 1 rows" in said
    assert "ignored  sound beside a video that has its own of 1 rows" in said
    assert records(tmp_path)["a"]["types"] == ["mp4"]


REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "two tags": ({"messages": asked("<video><video>What?"), "videos": ["a.mp4"]}, "bad_media_tag"),
    "tags in two turns": (
        {"messages": [*asked("<video>What?"), *asked("<video>And?")], "videos": ["a.mp4"]}, "bad_media_tag",
    ),
    "a tag in an answer": ({"messages": asked("What?", "a <video>"), "videos": ["a.mp4"]}, "bad_media_tag"),
    "a tag without media": ({"messages": asked("<video>What?")}, "bad_media_tag"),
    "a special token": ({"messages": asked("What <sep>?"), "videos": ["a.mp4"]}, "special_in_text"),
    "half a character": ({"messages": asked("What?", "nice \ud83d"), "videos": ["a.mp4"]}, "broken_text"),
    "turns of tools": (
        {"messages": [*asked("What?"), {"role": "tool", "content": "1"}], "videos": ["a.mp4"]}, "tool_turns",
    ),
    "one tag for two videos": (
        {"messages": asked("<video>What?"), "videos": ["a.mp4", "silent.mp4"]}, "several_media",
    ),
    "a path outside": ({"messages": asked("What?"), "videos": ["/data/a.mp4"]}, "unsafe_name"),
    "a link": ({"messages": asked("What?"), "videos": ["https://host/a.mp4"]}, "no_media"),
    "an unknown role": ({"messages": [{"role": "cat", "content": "x"}], "videos": ["a.mp4"]}, "bad_conversations"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_taught_is_refused_at_import_and_listed_even_when_nothing_else_is_there(
    media: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row, reason = REFUSED[name]
    assert imported(media, tmp_path, "sharegpt", lines({"id": "x", **row})) == 2
    assert refused(tmp_path) == {"x": reason}
    if reason == "unsafe_name":
        assert "--outside" in capsys.readouterr().out


def test_media_outside_of_the_folder_are_taken_when_that_is_said(media: Path, tmp_path: Path) -> None:
    rows = lines(
        {"messages": asked("What?"), "videos": [str(media / "a.mp4")]},
        {"messages": asked("What?"), "videos": ["../clips/x.mp4"]},
    )
    (tmp_path / "other").mkdir()
    assert imported(tmp_path / "other", tmp_path, "sharegpt", rows, "--outside") == 0
    assert len(records(tmp_path)) == 1
    assert list(refused(tmp_path).values()) == ["no_media"]
    inside = tmp_path / "again"
    inside.mkdir()
    assert imported(media, inside, "sharegpt", rows.split("\n")[0]) == 0  # absolute, and in the folder
    assert list(records(inside)) == ["a"]


CHOICES = ["A. red", "B. blue"]
MCQ = {"task": "mcq", "question": "Which?", "options": CHOICES, "answer": "B"}
CAT = {"task": "qa", "question": "What?", "answer": "A cat."}
TABLES: dict[str, tuple[str, str, Any, dict[str, Any]]] = {
    "video-chatgpt": ("rows.json", "", [{"q": "What?", "a": "A cat.", "video_id": "v_1"}], CAT),
    "daily-omni": ("qa.json", "", [{"Question": "Which?", "Choice": CHOICES, "Answer": "B", "video_id": "v_1"}], MCQ),
    "video-mme": ("t.json", "", [{"videoID": "v_1", "question": "Which?", "options": CHOICES, "answer": "B"}], MCQ),
    "video-r1": (
        "r1.json", "",
        [{"problem_id": 7, "problem": "<video>Which?", "options": CHOICES, "path": "./a.mp4",
          "solution": "<answer>B</answer>", "process": "<think>It is blue.</think>"}],
        {**MCQ, "think": "It is blue."},
    ),
    "sharegpt4video": (
        "s.jsonl", "",
        {"video_id": "x", "video_path": "a.mp4",
         "captions": [{"idx": "1", "content": "first"}, {"idx": "-1", "content": "A cat sleeps."}]},
        {"task": "caption", "answer": "A cat sleeps."},
    ),
    "table": ("t.csv", "video=clip,question=q,answer=reply", "clip,q,reply\na.mp4,What?,A cat.\n", CAT),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_a_row_of_each_table_becomes_its_item(media: Path, tmp_path: Path, kind: str) -> None:
    name, columns, rows, expected = TABLES[kind]
    words = ["--map", columns] if columns else []
    text = rows if isinstance(rows, str) else json.dumps(rows)
    assert imported(media, tmp_path, kind, text, *words, name=name) == 0
    ((record),) = records(tmp_path).values()
    assert record["items"][0].items() >= expected.items()


def test_columns_are_guessed_by_their_names_and_spans_may_be_clocks(media: Path, tmp_path: Path) -> None:
    text = "video\tcaption\tstart\tend\na.mp4\ta cat jumps\t00:01\t2.5\n"
    assert imported(media, tmp_path, "table", text, name="t.tsv") == 0
    (item,) = records(tmp_path)["a"]["items"]
    assert (item["task"], item["span"]) == ("grounding", [1.0, 2.5])
    assert "a cat jumps" in item["question"]


def test_a_table_without_the_columns_says_what_to_write(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(media, tmp_path, "table", "x,y\n1,2\n", name="t.csv") == 2
    assert "--map video=COLUMN" in capsys.readouterr().err
    assert imported(media, tmp_path, "table", "x,y\n1,2\n", "--map", "video=z", name="t.csv") == 2
    assert "there are x, y" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_of_hugging_face_datasets_hold_the_media_themselves(media: Path, tmp_path: Path, kind: str) -> None:
    rows = [{"video": {"bytes": build.mp4(2.0), "path": "deep/x.mp4"}, "question": "What?", "answer": "A cat."},
            {"video": {"bytes": None, "path": "a.mp4"}, "question": "Where?", "answer": "There."}]  # fmt: skip
    table = pyarrow.Table.from_pylist(rows)
    path = tmp_path / f"train.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    assert imported(media, tmp_path, "table", path.read_bytes(), name=path.name) == 0
    found = records(tmp_path)
    assert sorted(record["items"][0]["question"] for record in found.values()) == ["What?", "Where?"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")) == []


# options of every format


def many(count: int, media: Path) -> str:
    for number in range(count):
        (media / f"n{number}.wav").write_bytes(build.wav(1.0))
    return lines(*({"messages": asked("What?"), "audios": [f"n{number}.wav"]} for number in range(count)))


def test_a_dry_run_tells_what_would_be_used_and_why_not_and_writes_nothing(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": asked("What?"), "videos": [name]} for name in ("a.mp4", "none.mp4", "none.mp4", "/x.mp4")]
    assert imported(media, tmp_path, "sharegpt", lines(*rows), "--dry-run") == 0
    said = capsys.readouterr().out
    assert "4 rows: 1 would be used in 1 clips, 3 would not" in said
    assert "2 x no_media" in said
    assert "1 x unsafe_name" in said
    assert not (tmp_path / "out").exists()


def test_held_out_clips_are_chosen_by_content_and_no_clip_is_on_both_sides(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every clip has two names, one of them a link, and a record shows two clips that others show alone."""
    rows = []
    for number in range(20):
        (media / f"n{number}.wav").write_bytes(build.wav(0.5 + number / 100))
        (media / f"copy{number}.wav").symlink_to(media / f"n{number}.wav")
        rows += [{"messages": asked("What?"), "audios": [f"{name}{number}.wav"]} for name in ("n", "copy")]
    both = {"messages": asked("<audio> <audio> Which?"), "audios": ["n0.wav", "copy1.wav"]}
    assert imported(media, tmp_path, "sharegpt", lines(*rows, both), "--held-out", "30%") == 0
    assert "41 records are about 19 clips, each on one side under all its names" in capsys.readouterr().out
    train, held = records(tmp_path), records(tmp_path, "shard-held-out-*.tar")
    assert len(train) + len(held) == 41
    sides = [{int(re.findall(r"\d+", key)[0]) for key in side} for side in (train, held)]
    assert not sides[0] & sides[1]
    assert 1 <= len(sides[1]) <= 12
    assert any({0, 1} <= side for side in sides)


def test_rows_that_are_added_later_move_no_held_out_clip(media: Path, tmp_path: Path) -> None:
    sides = []
    for count in (10, 20):
        rows = []
        for number in range(count):
            (media / f"n{number}.wav").write_bytes(build.wav(0.5 + number / 100))
            rows.append({"messages": asked("What?"), "audios": [f"n{number}.wav"]})
        out = tmp_path / str(count)
        out.mkdir()
        assert imported(media, out, "sharegpt", lines(*rows), "--held-out", "50%") == 0
        sides.append(set(records(out, "shard-held-out-*.tar")))
    assert sides[0] == {key for key in sides[1] if int(key[1:]) < 10}


@pytest.mark.parametrize("text", ["100%", "x", "101%"])
def test_a_share_that_is_none_is_refused(media: Path, tmp_path: Path, text: str) -> None:
    assert imported(media, tmp_path, "sharegpt", "", "--held-out", text) == 2


# encodings, at every reader of annotations

SAID = "un caf\u00e9"
ARC = {"video": "a.mp4", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": SAID}]}
READERS: dict[str, tuple[str, str]] = {
    "sharegpt": ("r.jsonl", lines({"messages": asked("?", SAID), "videos": ["a.mp4"]})),
    "sharegpt list": ("r.json", json.dumps([{"messages": asked("?", SAID), "videos": ["a.mp4"]}])),
    "arc": ("r.jsonl", lines(ARC)),
    "records": ("r.jsonl", lines({"media": "a.mp4", "items": [{"task": "caption", "answer": SAID}]})),
    "webvid": ("r.csv", f"videoid,name\na,{SAID}\n"),
    "charades-sta": ("r.txt", f"a 0.5 2.0##{SAID}\n"),
    "activitynet": ("r.json", json.dumps({"a": {"timestamps": [[0.0, 1.0]], "sentences": [SAID]}})),
    "table": ("r.csv", f"video,caption\na.mp4,{SAID}\n"),
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("name", sorted(READERS))
def test_every_reader_takes_marks_utf16_and_a_named_encoding(
    media: Path, tmp_path: Path, name: str, encoding: str
) -> None:
    file, text = READERS[name]
    text = text.replace("\\u00e9", "\u00e9")
    words = ["--encoding", encoding] if encoding == "cp1252" else []
    assert imported(media, tmp_path, name.split()[0], text.encode(encoding), *words, name=file) == 0
    assert refused(tmp_path) == {}
    (record,) = records(tmp_path).values()
    assert SAID in json.dumps(record["items"], ensure_ascii=False)
    assert "\ufeff" not in json.dumps(record, ensure_ascii=False)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_transcripts_are_read_without_their_mark(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    (folder / "x.wav").write_bytes(build.wav(1.0))
    (folder / "x.TXT").write_bytes("hello world\n".encode(encoding))
    words = ["import", "--format", "transcripts", "--annotations", str(folder), "--out", str(tmp_path / "out")]
    assert main([*words, "--workers", "0"]) == 0
    assert records(tmp_path)["x"]["items"][0]["answer"] == "hello world"


def test_bytes_that_are_not_utf8_cost_their_row_and_the_remedy_is_named(media: Path, tmp_path: Path) -> None:
    good = lines({"messages": asked("?"), "videos": ["a.mp4"]}).encode()
    bad = b'{"messages": [{"role": "user", "content": "caf\xe9"}]}\n'
    assert imported(media, tmp_path, "sharegpt", bad + good) == 0
    assert refused(tmp_path) == {"line 1": "broken_text"}
    assert "--encoding cp1252" in (tmp_path / "out" / "shard.quarantine.jsonl").read_text()
