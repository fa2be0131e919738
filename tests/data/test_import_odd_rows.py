"""Rows of every format with anything in any place: each is used or listed, and none ends the import."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from arcvideo.data.importers import IMPORTERS, ImportReport, ImportRequest
from arcvideo.data.shards import main
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from arcvideo.media.still import video_of_stills
from arcvideo.shards.index import ensure_indexes
from tests.data import build

QA = [{"task": "qa", "question": "q?", "answer": "a"}]
SAID = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}]
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
PARTS = [{"type": "video", "video": "b.mp4"}, {"type": "text", "text": "q?"}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "records": [
        {"key": "k", "media": "b.mp4", "items": QA, "more": "x"},
        {"key": "l", "media": ["b.mp4", "p.png"], "items": QA},
        {"key": "m", "text_only": True, "items": [{"task": "grounding", "question": "q", "span": [0, 1]}]},
    ],
    "arc": [{"id": "1", "video": "b.mp4", "conversations": TURNS}],
    "sharegpt": [
        {"id": "1", "videos": ["b.mp4"], "audios": ["a.wav"], "system": "s", "tools": "t", "messages": SAID},
        {"id": "2", "messages": [{"role": "user", "content": PARTS}, SAID[1]]},
        {"id": "3", "video": {"frames": ["p.png", "p.png"], "times": [0, 1]}, "messages": SAID},
        {"id": "4", "video": ["p.png", "p.png"], "fps": 2, "messages": SAID},
        {"id": "5", "query": "q", "response": "a", "history": [["q", "b"]]},
    ],
    "sharegpt4video": [{"video_id": "1", "video_path": "b.mp4", "captions": [{"idx": "-1", "content": "c"}]}],
    "video-r1": [
        {"problem_id": 1, "problem": "p", "solution": "<answer>A</answer>", "path": "b.mp4", "options": ["A", "B"]},
    ],
    "table": [{"video": "b.mp4", "id": 1, "question": "q", "answer": "a", "start": 0, "end": 1}],
}  # fmt: skip
ODD: list[Any] = [
    None, True, -1, float("nan"), float("inf"), 1e-320, 10**400, "", "\0", "\ud800", "\udcff", "x" * 5000, "a/" * 1990,
    "/", ".", "..", "~root", "file://", "a\nb", [], [[]], [None], [float("nan"), 1], [0, 10**400], [0, 1e-9], {},
    {"path": 1}, {"frames": ["p.png"], "fps": 1e-320}, [{"type": []}],
]  # fmt: skip


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, data in {"a.wav": build.wav(1.0), "b.mp4": build.mp4(1.0), "p.png": build.png()}.items():
        (folder / name).write_bytes(data)
    return folder


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything in a value."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def changed(row: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    row = copy.deepcopy(row)
    inside = row
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = value
    return row


def imported(kind: str, path: Path, media: Path, out: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of items in the index, and the list of problems."""
    where = ["--annotations", str(path), "--videos", str(media), "--out", str(out), "--workers", "0"]
    assert main(["import", "--format", kind, *where, *more]) == 0
    indexes = ensure_indexes(sorted(out.glob("*.tar")), progress=False)
    assert [problem for index in indexes for problem in index.problems()] == []  # what was used stays used
    problems = [json.loads(line) for line in (out / "shard.quarantine.jsonl").read_text().splitlines()]
    return sum(len(index.items) for index in indexes), problems


@pytest.mark.parametrize("kind", ROWS)
def test_anything_in_any_place_of_a_row_costs_that_row_at_most(media: Path, tmp_path: Path, kind: str) -> None:
    odd = [changed(row, at, value) for row in ROWS[kind] for at in places(row) for value in ODD]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS[kind][0], *odd)))
    report = ImportReport()
    drafts = IMPORTERS[kind](ImportRequest(annotations=(path,), videos=media), report=report)
    assert report.rows == sum(len(draft.items) for draft in drafts) + len(report.problems)
    assert report.rows >= 1 + len(odd)


KEYS = ["\ud800", "\udcff", "a\0b", "a\nb", "x" * 70_000, " ", ".", "a//b", "\u202e"]


def test_whatever_a_record_or_file_is_called_it_is_used_and_stays_used(media: Path, tmp_path: Path) -> None:
    with open(bytes(tmp_path) + b"/n\xe9.wav", "wb") as file:
        file.write(build.wav(1.0))
    (tmp_path / ("y" * 251 + ".wav")).write_bytes(build.wav(1.1))
    rows = [{"key": key, "text_only": True, "items": QA} for key in KEYS]
    rows += [{"media": name, "items": QA} for name in ("n\udce9.wav", "y" * 251 + ".wav")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    used, problems = imported("records", path, tmp_path, tmp_path / "out")
    assert (used, problems) == (len(rows), [])


def test_fields_that_cannot_be_written_cost_their_record(media: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"media": "a.wav", "items": QA, "by": "\ud800"}) + "\n" + json.dumps(ROWS["records"][0]))
    used, problems = imported("records", path, media, tmp_path / "out")
    assert used == 1
    assert [problem["reason"] for problem in problems] == ["broken_text"]


HEAD = "video,question,answer\r\n"
GOOD = "b.mp4,what?,red\r\n"


@pytest.mark.parametrize(
    ("text", "used", "reasons"),
    [
        (HEAD + GOOD + f'b.mp4,again?,"{"x" * 190_000}"\r\n', 2, []),
        (HEAD + f'{GOOD}b.mp4,"open,red\r\n' + GOOD.replace("what", "who") * 2, 3, ["bad_row"]),
        (HEAD + GOOD + "b.mp4,red, blue or green?,red\r\n", 1, ["bad_row"]),
        (HEAD + GOOD + "b.mp4,which?,red,,\r\n\r\n", 2, []),
        (HEAD + GOOD + "b.mp4\r\n", 1, ["no_answer"]),
    ],
    ids=["long cell", "quote without end", "too many cells", "empty cells", "too few cells"],
)
def test_a_row_of_a_table_costs_itself(media: Path, tmp_path: Path, text: str, used: int, reasons: list[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    found, problems = imported("table", path, media, tmp_path / "out")
    assert (found, [problem["reason"] for problem in problems]) == (used, reasons)


def test_rows_of_json_name_their_columns_each_for_itself(media: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"odd": 1},
        {"video": "b.mp4", "question": "q?", "answer": "a"},
        {"path": "b.mp4", "question": "r?", "options": ["a", "b"], "answer": "A"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    used, problems = imported("table", path, media, tmp_path / "out")
    assert (used, [problem["reason"] for problem in problems]) == (2, ["no_media"])
    (index,) = ensure_indexes([tmp_path / "out" / "shard-000000.tar"], progress=False)
    assert [item["task"] for item in index.record(0)["items"]] == ["qa", "mcq"]


@pytest.mark.parametrize("encoding", ["base64", "rot13", "idna", "utf-16", "nonsense"])
def test_an_encoding_that_cannot_be_is_one_line(
    media: Path, tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text(HEAD + GOOD)
    where = ["--annotations", str(tmp_path / "rows.csv"), "--videos", str(media), "--out", str(tmp_path / "out")]
    assert main(["import", "--format", "table", *where, "--encoding", encoding]) == 2
    assert capsys.readouterr().err.startswith(f"error: --encoding {encoding}: ")


def test_two_columns_of_one_name_are_told(media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text("video,video,question,answer\nb.mp4,p.png,q,a\n")
    where = ["--annotations", str(tmp_path / "rows.csv"), "--videos", str(media), "--out", str(tmp_path / "out")]
    assert main(["import", "--format", "table", *where]) == 2
    assert "two columns are called 'video'" in capsys.readouterr().err


def test_damaged_pages_of_a_table_are_told_with_its_name(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.parquet"
    rows = {"video": ["b.mp4"] * 300, "question": [f"{n * 7919:x}" for n in range(300)], "answer": ["a"] * 300}
    parquet.write_table(pyarrow.table(rows), path, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[data.index(f"{150 * 7919:x}".encode())] ^= 1
    path.write_bytes(data)
    where = ["--annotations", str(path), "--videos", str(media), "--out", str(tmp_path / "out")]
    assert main(["import", "--format", "table", *where]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: cannot be read after row ")


def test_a_file_over_the_limit_is_refused_unread_and_needs_no_room(media: Path, tmp_path: Path) -> None:
    (tmp_path / "b.mp4").write_bytes(build.mp4(1.0))
    for name, size in (("large.mp4", MediaLimits().max_bytes + 1), ("larger.wav", 1 << 40)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
    rows = [{"media": name, "items": QA} for name in ("large.mp4", "b.mp4", "larger.wav")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    used, problems = imported("records", path, tmp_path, tmp_path / "out")
    assert (used, [problem["reason"] for problem in problems]) == (1, ["too_large", "too_large"])


def test_what_is_no_file_is_no_transcript_and_no_sound(tmp_path: Path) -> None:
    folder = tmp_path / "sounds"
    (folder / "folder.wav").mkdir(parents=True)
    for name in ("pipe.txt", "pipe.wav"):
        os.mkfifo(folder / name)
    (folder / "a.wav").write_bytes(build.wav(1.0))
    (folder / "a.txt").write_text("red")
    where = ["--annotations", str(folder), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main(["import", "--format", "transcripts", *where]) == 0
    assert (tmp_path / "out" / "shard.quarantine.jsonl").read_text() == ""


@pytest.mark.parametrize("times", [[0.0, 1e-9], [0.0, 0.0]])
def test_frames_that_make_no_video_are_an_error_of_the_media(times: list[float]) -> None:
    with pytest.raises(MediaError, match="ascend"):
        video_of_stills([build.png(), build.png()], times=times)
    huge = bytearray(build.png())
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(MediaError, match="no picture"):
        video_of_stills([bytes(huge)], times=[0.0])


def row_of(**changes: Any) -> dict[str, Any]:
    return {"messages": SAID, "videos": ["b.mp4"], **changes}


R1 = {"problem": "p?", "solution": "<answer>A</answer>", "path": "b.mp4", "options": ["A. x", "B. y"]}
MME = {"videoID": "b", "question": "q?", "options": ["A. x", "B. y"], "answer": "B"}
SPAN = {"video": "b.mp4", "question": "q?", "start": 0, "end": 1}
MEANT_OTHERWISE: dict[str, tuple[str, dict[str, Any], str]] = {
    "a system that is no text": ("sharegpt", row_of(system=["s"]), "bad_conversations"),
    "an input that is no text": (
        "llama-factory", {"instruction": "q", "input": [1], "output": "a"}, "bad_conversations",
    ),
    "an instruction that is no text": (
        "llama-factory", {"instruction": True, "input": "x", "output": "a"}, "bad_conversations",
    ),
    "a tag for a video and sound alone": (
        "llama-factory",
        {"messages": [{"role": "user", "content": "<video>q?"}, SAID[1]], "videos": None, "audios": ["a.wav"]},
        "bad_media_tag",
    ),
    "a solution that is a list": ("video-r1", {**R1, "solution": ["A", "A"]}, "bad_row"),
    "a letter without options": ("video-r1", {**R1, "options": None, "problem_type": "multiple choice"}, "bad_options"),
    "options that are false": ("video-r1", {**R1, "options": False}, "bad_options"),
    "a letter of a set without options": ("video-mme", {**MME, "options": None}, "bad_options"),
    "a caption that is infinite": (
        "sharegpt4video", {"video_path": "b.mp4", "captions": [{"idx": -1, "content": float("inf")}]}, "bad_number",
    ),
    "a span of nothing": ("table", {**SPAN, "question": None}, "no_caption"),
    "a span without end": ("table", {**SPAN, "end": None}, "bad_span"),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANT_OTHERWISE)
def test_a_row_that_lacks_a_part_does_not_become_another_sample(media: Path, name: str, tmp_path: Path) -> None:
    kind, row, reason = MEANT_OTHERWISE[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    report = ImportReport()
    assert not list(IMPORTERS[kind](ImportRequest(annotations=(path,), videos=media), report=report))
    assert [problem.reason for problem in report.problems] == [reason]


def test_open_questions_may_be_answered_with_a_letter(media: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**R1, "options": [], "problem_type": "OCR"}))
    (draft,) = IMPORTERS["video-r1"](ImportRequest(annotations=(path,), videos=media), report=ImportReport())
    assert draft.items[0]["task"] == "qa"


@pytest.mark.parametrize(
    ("data", "used", "reasons"),
    [
        (json.dumps([1]) + "\n" + json.dumps(row_of()) + "\n", 1, ["broken_json"]),
        ("[" + json.dumps(row_of()) + "]\n\n", 1, []),
        (json.dumps(row_of())[:-1] + ', "videos": ["a.wav"]}\n' + json.dumps(row_of()), 1, ["broken_json"]),
        ("[" + json.dumps(row_of()) + "," + json.dumps(row_of())[:-1] + ', "videos": []}]', 1, ["broken_json"]),
    ],
    ids=["a list before rows", "one row in a list", "a name twice in a line", "a name twice in a list"],
)
def test_lists_and_names_that_stand_twice_cost_a_row(
    media: Path, tmp_path: Path, data: str, used: int, reasons: list[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(data)
    report = ImportReport()
    drafts = IMPORTERS["sharegpt"](ImportRequest(annotations=(path,), videos=media), report=report)
    assert (sum(len(draft.items) for draft in drafts), [one.reason for one in report.problems]) == (used, reasons)


@pytest.mark.parametrize(
    ("kind", "data", "used", "reasons"),
    [
        ("charades-sta", b"b 0 1##one\rb 0 1##two\r", 0, ["bad_row"]),
        ("charades-sta", "b 0 1##one\nb 0 1##two".encode("utf-16")[:-1], 1, ["broken_text"]),
        ("activitynet", b'{"b": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0, ["broken_json"]),
    ],
    ids=["lines of an old Mac", "half a character of UTF-16", "nested without end"],
)
def test_what_is_no_line_or_no_text_is_told_as_what_it_is(
    media: Path, tmp_path: Path, kind: str, data: bytes, used: int, reasons: list[str]
) -> None:
    (tmp_path / "rows.txt").write_bytes(data)
    report = ImportReport()
    drafts = IMPORTERS[kind](ImportRequest(annotations=(tmp_path / "rows.txt",), videos=media), report=report)
    assert (sum(len(draft.items) for draft in drafts), [one.reason for one in report.problems]) == (used, reasons)


def test_fields_of_megabytes_are_told_in_short_rows_and_long_texts_counted_in_seconds(
    media: Path, tmp_path: Path
) -> None:
    """A tokenizer for looking is not learnt from a word of a million signs: its time grows with the square."""
    rows = [row_of(id="y" * 1_000_000, messages=[{"from": "x" * 1_000_000, "value": "q"}]),
            row_of(messages=[{**SAID[0], "content": "x" * 199_000}, SAID[1]]),
            row_of(messages=[{**SAID[0], "content": "x" * 200_000}, SAID[1]])]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    used, problems = imported("sharegpt", path, media, tmp_path / "out")
    assert (used, [problem["reason"] for problem in problems]) == (1, ["bad_conversations", "long_text"])
    assert len((tmp_path / "out" / "shard.quarantine.jsonl").read_text()) < 2_000
    begun = time.monotonic()
    assert main(["stats", str(tmp_path / "out" / "shard-000000.tar")]) == 0
    assert time.monotonic() - begun < 60  # it took longer than anybody waited


def test_columns_of_a_conversation_that_nobody_reads_are_told(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": SAID, "Videos": ["b.mp4"], "id": 1}))
    imported("sharegpt", path, media, tmp_path / "out")
    said = capsys.readouterr().out
    assert "ignored  Videos of 1 rows" in said
    assert "ignored  id" not in said


@pytest.mark.parametrize("name", ["/ABS", "../up", "..", "", "a/b", "a\0", "\x1b[31m"])
def test_a_meta_file_cannot_name_shards_outside_of_the_folder(
    media: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = name.replace("/ABS", str(tmp_path / "elsewhere"))
    assert meta_import(media, tmp_path, {name: 1}) == 2
    assert "is no name for shards" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json", "rows.jsonl"]


@pytest.mark.parametrize("repeat", [True, float("nan"), float("inf"), 10**400, -1, "2"])
def test_a_meta_file_says_how_often_in_a_number(
    media: Path, tmp_path: Path, repeat: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert meta_import(media, tmp_path, {"set": repeat}) == 2
    assert "repeat_time" in capsys.readouterr().err


def meta_import(media: Path, tmp_path: Path, repeats: dict[str, Any]) -> int:
    """Import an ARC meta file with a set of each name, which repeats so often."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROWS["arc"][0]) + "\n")
    sets = {name: {"root": str(media), "annotation": str(rows), "repeat_time": n} for name, n in repeats.items()}
    (tmp_path / "meta.json").write_text(json.dumps(sets))
    words = ["--annotations", str(tmp_path / "meta.json"), "--out", str(tmp_path / "out"), "--workers", "0"]
    return main(["import", "--format", "arc-meta", *words])
