from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from arcvideo.data.importers import IMPORTERS, Draft, ImportReport, ImportRequest
from arcvideo.data.importers.ledger import Ledger
from arcvideo.data.importers.sources import Opened
from arcvideo.data.importers.write import write_drafts
from arcvideo.data.shards import main
from arcvideo.shards.index import ensure_indexes
from tests.data import build


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for name in ("a", "b", "v_c", "page/d"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.mp4").write_bytes(build.mp4(3.0))
    (folder / "still.png").write_bytes(build.png())
    return folder


def drafted(kind: str, media: Path, text: str | bytes, *, name: str) -> tuple[list[Draft], ImportReport]:
    """What an importer makes of an annotation file of this content."""
    path = media / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    report = ImportReport()
    request = ImportRequest(annotations=(path,), videos=media, task="qa")
    return list(IMPORTERS[kind](request, report=report)), report


def reasons(report: ImportReport) -> dict[str, str]:
    return {problem.key: problem.reason for problem in report.problems}


def test_webvid_rows_become_captions(media: Path) -> None:
    text = (
        b"videoid,contentUrl,duration,page_dir,name\n"
        b'a,x,3,,a red shape\nd,x,3,page,"two,\nlines"\n,x,3,,no name\nb,x,3,,\xff\n'
    )
    drafts, report = drafted("webvid", media, text, name="webvid.csv")
    assert [(draft.key, draft.items[0]["answer"]) for draft in drafts] == [
        ("a", "a red shape"),
        ("page/d", "two,\nlines"),
    ]
    assert drafts[1].media == media / "page" / "d.mp4"
    assert reasons(report) == {"line 5": "no_media", "b": "broken_text"}
    assert report.rows == 4


def test_charades_lines_become_time_spans(media: Path) -> None:
    text = "a 0.5 2.0##a red shape appears.\na 1.0 3.0##it moves\nb 2.0 1.0##back in time\nnonsense\nv_c 1 x##y\n"
    drafts, report = drafted("charades-sta", media, text, name="charades.txt")
    assert [draft.key for draft in drafts] == ["a"]
    assert [item["span"] for item in drafts[0].items] == [[0.5, 2.0], [1.0, 3.0]]
    assert "a red shape appears." in drafts[0].items[0]["question"]
    assert reasons(report) == {"line 3": "bad_span", "line 4": "bad_row", "line 5": "bad_row"}


def test_activitynet_entries_become_time_spans_and_chapters(media: Path) -> None:
    content: dict[str, Any] = {
        "v_c": {"duration": 3.0, "timestamps": [[1.0, 2.0], [0.0, 1.0]], "sentences": [" second ", "first"]},
        "a": {"duration": 3.0, "timestamps": [[0.0, 1.0]], "sentences": []},
        "../b": {"duration": 3.0, "timestamps": [[0.0, 1.0]], "sentences": ["x"]},
    }
    drafts, report = drafted("activitynet", media, json.dumps(content), name="activitynet.json")
    (draft,) = drafts
    assert [item["task"] for item in draft.items] == ["grounding", "grounding", "chapters"]
    assert draft.items[2]["events"] == [[0.0, 1.0, "first"], [1.0, 2.0, "second"]]
    assert reasons(report) == {"a": "bad_row", "../b": "unsafe_name"}
    assert report.rows == 5


def test_sharegpt_rows_of_all_dialects(media: Path) -> None:
    def turns(*said: str) -> list[dict[str, str]]:
        return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]

    rows: list[Any] = [
        {"id": "x", "video": "a.mp4", "conversations": turns("<video>\nwhat?", "red", "where?", "left")},
        {"id": "y", "images": ["still.png"], "conversations": turns("<image>\nwhat?", "a cat")},
        {"id": "z", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what?"},
                                 {"role": "assistant", "content": "text"}]},
        {"id": "two", "images": ["still.png", "a.png"], "conversations": turns("<image>what?", "red")},
        {"id": "odd", "video": "a.mp4", "conversations": turns("what?")},
        "text",
    ]  # fmt: skip
    drafts, report = drafted("sharegpt", media, json.dumps(rows), name="sharegpt.json")
    first, still, text = drafts
    assert first.items[0]["turns"] == [{"question": "where?", "answer": "left"}]
    assert (still.items[0]["question"], still.items[0]["answer"]) == ("<video>\nwhat?", "a cat")
    assert (text.key, text.media, text.items[0]["question"]) == ("text-z", None, "Be brief.\nwhat?")
    assert reasons(report) == {"two": "several_media", "odd": "no_answer", "entry 5": "broken_json"}


def test_records_of_our_own_schema_keep_their_fields(media: Path) -> None:
    mcq = {"task": "mcq", "question": "which?", "options": ["red", "blue"], "answer": "B"}
    rows = [
        {"key": "k.1", "media": "a.mp4", "title": "t", "items": [mcq, {"task": "poem"}]},
        {"text_only": True, "items": [mcq]},
        {"items": [mcq]},
        {"media": "a.mp4", "items": []},
    ]
    drafts, report = drafted("records", media, "\n".join(map(json.dumps, rows)), name="records.jsonl")
    assert [(draft.key, dict(draft.extra)) for draft in drafts] == [("k_1", {"title": "t"}), ("line 2", {})]
    assert reasons(report) == {"k.1/1": "unknown_task", "line 3": "no_media", "line 4": "no_items"}
    assert report.rows == 5


def test_sounds_with_transcripts(tmp_path: Path) -> None:
    for name in ("one.wav", "two.wav", "deep/three.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(build.wav(1.0))
    (tmp_path / "one.txt").write_text("red blue\n")
    (tmp_path / "lost.txt").write_text("green")
    (tmp_path / "deep" / "x.trans.txt").write_text("three WHITE RED\n")
    report = ImportReport()
    drafts = list(IMPORTERS["transcripts"](ImportRequest(annotations=(tmp_path,)), report=report))
    assert {draft.key: draft.items[0]["answer"] for draft in drafts} == {"one": "red blue", "deep/three": "WHITE RED"}
    assert reasons(report) == {"two.wav": "no_answer", "lost": "no_media"}
    assert report.rows == 4


def test_names_that_differ_only_in_dots_stay_apart(media: Path) -> None:
    for name in ("x.1.png", "x_1.png"):
        (media / name).write_bytes(build.png())
    rows = [{"media": name, "items": [{"task": "caption", "answer": "red"}]} for name in ("x.1.png", "x_1.png")]
    drafts, _ = drafted("records", media, "\n".join(map(json.dumps, rows)), name="dots.jsonl")
    assert [draft.key for draft in drafts] == ["x_1", "x_1_2"]


def test_a_span_behind_the_end_of_its_clip_is_refused(media: Path, tmp_path: Path) -> None:
    drafts, report = drafted("charades-sta", media, "a 0 2##x\na 7 9##late\nb 8 9##late\n", name="late.txt")
    paths = write(drafts, tmp_path, report=report)
    assert [problem.reason for problem in report.problems] == ["span_outside"] * 2
    assert report.rows == report.used + 2
    (index,) = ensure_indexes(paths, progress=False)
    assert [index.key(row) for row in range(len(index.clips))] == ["a"]


def write(drafts: list[Draft], out: Path, *, workers: int = 0, report: ImportReport | None = None) -> list[Path]:
    with Ledger(out / "shard.import.jsonl", request={}) as ledger:
        return write_drafts(
            drafts,
            ledger=ledger,
            name="shard",
            per_shard=2,
            workers=workers,
            report=report or ImportReport(),
            advance=lambda count: None,
        )


def seven(folder: Path) -> list[Draft]:
    """Seven drafts of which the third is damaged."""
    items = ({"task": "caption", "answer": "red"},)
    drafts = []
    for number in range(7):
        path = folder / f"c{number}.wav"
        path.write_bytes(b"broken" if number == 2 else build.wav(1.0 + number / 10))
        drafts.append(Draft(key=f"c{number}", items=items, labels=(f"c{number}/0",), media=path))
    return drafts


def test_stopped_import_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = seven(tmp_path)
    whole = write(drafts, tmp_path / "whole")
    real = Opened.pieces

    def fails(self: Opened) -> Iterator[bytes]:
        if self.path.name == "c5.wav":
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Opened, "pieces", fails)
    with pytest.raises(KeyboardInterrupt):
        write(drafts, tmp_path / "parts")
    monkeypatch.undo()
    stopped = sorted(path.name for path in (tmp_path / "parts").glob("*.tar"))
    assert stopped == ["shard-000000.tar", "shard-000001.tar"]
    times = [(tmp_path / "parts" / name).stat().st_mtime_ns for name in stopped]
    report = ImportReport()
    parts = write(drafts, tmp_path / "parts", report=report)
    assert [(tmp_path / "parts" / name).stat().st_mtime_ns for name in stopped] == times  # not written again
    assert [path.read_bytes() for path in parts] == [path.read_bytes() for path in whole]
    assert (report.used, reasons(report)) == (6, {"c2/0": "unreadable"})


def test_another_import_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    drafts = seven(tmp_path)
    write(drafts, tmp_path / "out")
    with pytest.raises(ValueError, match="changed since shard-000000"):
        write(list(islice(drafts, 1, None)), tmp_path / "out")


def test_parallel_import_writes_the_same(tmp_path: Path) -> None:
    drafts = seven(tmp_path)
    alone, together = write(drafts, tmp_path / "alone"), write(drafts, tmp_path / "together", workers=2)
    assert [path.read_bytes() for path in alone] == [path.read_bytes() for path in together]


def test_arc_meta_file_names_its_data_sets(media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "red"}]
    (media / "brief.jsonl").write_text(json.dumps({"id": 0, "video": "a.mp4", "conversations": turns}))
    meta = {"brief": {"root": ".", "audio_root": "", "annotation": "brief.jsonl", "repeat_time": 2}}
    (media / "meta.json").write_text(json.dumps(meta))
    where = ["--annotations", str(media / "meta.json"), "--out", str(tmp_path), "--workers", "0"]
    assert main(["import", "--format", "arc-meta", *where]) == 0
    assert "data.sources.brief.weight=2" in capsys.readouterr().out
    assert (tmp_path / "brief-000000.tar").is_file()


@pytest.mark.parametrize("kind", sorted(IMPORTERS))
def test_missing_annotations_are_named(kind: str, media: Path) -> None:
    request = ImportRequest(annotations=(media / "nowhere",), videos=media)
    with pytest.raises(ValueError, match="nowhere: no such"):
        list(IMPORTERS[kind](request, report=ImportReport()))
