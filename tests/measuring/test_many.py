"""Many questions from a file: answered as they come, gone on with after a kill, mistakes beside the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arcvideo.ask import main
from arcvideo.model.disk.loading import save_model
from arcvideo.model.disk.tokenizer import save_tokenizer
from tests.data.build import mp4
from tests.rollout.world import make_model, tokenizer

ROWS: list[dict[str, Any]] = [
    {"id": "a", "video": "one.mp4", "question": "Which colour is seen?"},
    {"id": "b", "video": "one.mp4", "question": "Which?", "task": "mcq", "options": ["red", "blue"]},
    {"id": "c", "video": "two.mp4", "question": "When is red shown?", "task": "grounding"},
    {"id": "d", "question": "Which colour is red?"},
    {"id": "e", "video": "two.mp4", "task": "summary"},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, two films and questions about them."""
    folder = tmp_path_factory.mktemp("many")
    save_model(make_model(), folder / "weights")
    save_tokenizer(tokenizer(), folder / "weights")
    (folder / "one.mp4").write_bytes(mp4(2.0))
    (folder / "two.mp4").write_bytes(mp4(3.0, shade=40))
    put(folder / "questions.jsonl", ROWS)
    return folder


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(place: Path, out: Path, *more: str, questions: Path | None = None) -> list[str]:
    asked = questions or place / "questions.jsonl"
    return [
        f"checkpoint={place / 'weights'}",
        f"questions={asked}",
        f"out={out}",
        "max_new_tokens=6",
        "device=cpu",
        *more,
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_answered_as_ask_answers_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(place, tmp_path / "out.jsonl")) == 0
    assert "5 answered, 0 were there already, 0 could not be" in capsys.readouterr().out
    found = {row["id"]: row for row in rows_of(tmp_path / "out.jsonl")}
    assert list(found) == [row["id"] for row in ROWS]
    for row in ROWS:
        one = [
            f"{key}={','.join(value) if isinstance(value, list) else value}"
            for key, value in row.items()
            if key != "id"
        ]
        one = [word.replace("video=", f"video={place}/") for word in one]
        assert main([f"checkpoint={place / 'weights'}", "max_new_tokens=6", "device=cpu", *one]) == 0
        assert capsys.readouterr().out.splitlines()[0] == found[row["id"]]["text"].splitlines()[0]
    assert len({row["text"] for row in found.values()}) > 1


def test_the_same_command_goes_on_and_asks_nothing_twice(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert main(words(place, out, "batch_prompts=1")) == 0
    whole = out.read_bytes()
    cut = (
        b"".join(whole.splitlines(keepends=True)[:2]) + whole.splitlines(keepends=True)[2][:30]
    )  # killed while writing
    out.write_bytes(cut)
    capsys.readouterr()
    assert main(words(place, out, "batch_prompts=1")) == 0
    assert "3 answered, 2 were there already" in capsys.readouterr().out
    assert out.read_bytes() == whole
    assert main(words(place, out)) == 0
    assert "0 answered, 5 were there already" in capsys.readouterr().out


def test_what_cannot_be_asked_stands_beside_the_answers_and_is_asked_again(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"video": "three.mp4", "question": "Which?"},
        {"video": "one.mp4", "question": "Which?", "task": "mcq"},
        {"video": "one.mp4"},
        {"video": "one.mp4", "question": "Which?", "task": "mqc"},
        {"video": "one.mp4", "question": "Which?", "task": "mcq", "options": "red"},
        ROWS[0],
    ]
    questions, out = put(tmp_path / "questions.jsonl", rows), tmp_path / "out.jsonl"
    (tmp_path / "one.mp4").write_bytes(mp4(2.0))
    assert main(words(place, out, questions=questions)) == 0
    assert "1 answered, 0 were there already, 5 could not be" in capsys.readouterr().out
    told = " ".join(row["error"] for row in rows_of(out) if "error" in row)
    for part in (
        "line 1: ",
        "three.mp4",
        "options: a multiple choice needs some",
        "question: is missing",
        "task='mqc'",
    ):
        assert part in told
    (tmp_path / "three.mp4").write_bytes(mp4(2.0))
    assert main(words(place, out, questions=questions)) == 0
    assert "1 answered, 1 were there already, 4 could not be" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["question=Which?"], "question: stands in the lines"),
        (["out="], "out: must name the file"),
        (["questions=none.jsonl"], "no such file"),
        (["max_new_tokens=7"], "other settings; give another file"),
    ],
)
def test_mistakes_are_told_in_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"asked": "x", "how": "y"}\n')
    assert main([*words(place, out), *more]) == 2
    assert told in capsys.readouterr().err
