"""Damaged annotation files: a reader lists what cannot be asked, or refuses the folder in one line; nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcvideo.bench import Bench, read_bench
from arcvideo.tasks import make_sample
from tests.bench.layouts import ANNOTATIONS, LAYOUTS, SRT

NAMES = [name for name in ANNOTATIONS if name != "mvbench"]
"""Each stands for its kind; the twenty files of one set are read like the one of another."""
JSON = [name for name in NAMES if ANNOTATIONS[name].endswith((".json", ".jsonl"))]
ODD: list[Any] = [
    *(None, True, 0, -1, 7, 0.5, 1e300, float("inf"), float("nan"), 10**400, "", " ", "B", "\ud800", "\0"),
    *(
        "../a",
        "/",
        ".",
        "x" * 300,
        "<video>",
        [],
        {},
        [[]],
        [None],
        ["red", "red"],
        [2, 1],
        [0, 10**9],
        [[0, 1], [5, 9]],
    ),
    *({"A": None}, {"A": "", "B": ""}, {"task": "mcq"}, {"duration": "long"}),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damaged")
    for name in NAMES:
        LAYOUTS[name](root / name)
        read_bench(name, root / name)  # lengths of clips are noted once
    return root


def holds_up(name: str, folder: Path) -> None:
    """Read the folder, and look closely at whatever comes back."""
    options = {"subtitles": "yes"} if name in ("worldsense", "video-mme") else {}
    bench: Bench | None = None
    refused = "not refused"
    try:
        bench = read_bench(name, folder, **options)
    except ValueError as error:
        refused = str(error)
    if bench is None:
        assert refused.splitlines() == [refused]
        assert str(folder) in refused
        return
    ids = [item.id for item in bench.items]
    assert len(set(ids)) == len(ids)
    for hole in bench.holes:
        assert hole.reason
        json.dumps([hole.id, hole.reason, hole.detail]).encode()
    for item in bench.items:
        make_sample(item.fields, key=item.id, media_key="m")
        assert item.clip.is_relative_to(folder)
        json.dumps([item.id, *item.tags, item.subtitles]).encode()


@given(name=st.sampled_from(NAMES), place=st.floats(0, 1), junk=st.binary(max_size=6), cut=st.booleans())
@settings(max_examples=120)
def test_bytes_that_were_lost_or_changed(world: Path, name: str, place: float, junk: bytes, cut: bool) -> None:
    path = world / name / ANNOTATIONS[name]
    whole = path.read_bytes()
    at = int(place * len(whole))
    try:
        path.write_bytes(whole[:at] + junk + (b"" if cut else whole[at + len(junk) :]))
        holds_up(name, world / name)
    finally:
        path.write_bytes(whole)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where everything in a JSON value stands."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, one in inside for found in nodes(one, (*path, key)))]


def put_in(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    value = copy.copy(value)
    value[path[0]] = put_in(value[path[0]], path[1:], odd)
    return value


@given(name=st.sampled_from(JSON), data=st.data())
@settings(max_examples=250)
def test_values_that_nobody_expects(world: Path, name: str, data: st.DataObject) -> None:
    path = world / name / ANNOTATIONS[name]
    whole = path.read_text()
    is_lines = path.suffix == ".jsonl"
    content = [json.loads(line) for line in whole.splitlines()] if is_lines else json.loads(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(nodes(content)[1 if is_lines else 0 :]))
        content = put_in(content, where, data.draw(st.sampled_from(ODD)))
        if not isinstance(content, (list, dict)):
            break
    try:
        path.write_text("".join(json.dumps(row) + "\n" for row in content) if is_lines else json.dumps(content))
        holds_up(name, world / name)
    finally:
        path.write_text(whole)


@given(place=st.integers(0, len(SRT)), junk=st.binary(max_size=5))
@settings(max_examples=40)
def test_subtitles_that_are_damaged(world: Path, place: int, junk: bytes) -> None:
    path = world / "worldsense/subtitles/AAW.srt"
    path.write_bytes(SRT.encode()[:place] + junk + SRT.encode()[place:])
    holds_up("worldsense", world / "worldsense")


def test_an_odd_row_of_a_table_of_questions_costs_itself(tmp_path: Path) -> None:
    LAYOUTS["own"](tmp_path)
    rows = ["video,question,answer", 'a.mp4,"open,red', "a.mp4,which, red or blue?,red", f"a.mp4,long?,{'x' * 190_000}",
            "a.mp4,what?,blue"]  # fmt: skip
    (tmp_path / "q.csv").write_text("\n".join(rows) + "\n")
    bench = read_bench("own", tmp_path, file="q.csv")
    assert [item.fields["question"] for item in bench.items] == ["long?", "what?"]
    assert [hole.reason for hole in bench.holes] == ["bad_row", "bad_row"]
