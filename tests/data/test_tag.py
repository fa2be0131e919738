"""Tags of a measurement, written back into copies of shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arcvideo.data.shards import main
from arcvideo.shards.index import ShardIndex, ensure_indexes
from arcvideo.shards.write import Record, write_shards
from tests.data import build


def needs(folder: Path, rows: dict[str, str]) -> str:
    folder.mkdir()
    text = "".join(json.dumps({"key": key, "clip": "c", "task": "mcq", "tags": [f"needs:{tag}"]}) + "\n"
                   for key, tag in rows.items())  # fmt: skip
    (folder / "needs.jsonl").write_text(text)
    return str(folder)


def of(folder: Path) -> list[ShardIndex]:
    return list(ensure_indexes(sorted(folder.glob("*.tar"))))


def tags(index: ShardIndex) -> dict[str, list[str]]:
    return {
        f"{index.key(row)}/{number}": item.get("tags") or []
        for row in range(len(index.clips))
        for number, item in enumerate(index.record(row)["items"])
    }


def test_measured_tags_take_the_place_of_others_of_their_kind_and_media_are_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = build.shards(tmp_path / "in", count=4, per_shard=2)
    before = of(tmp_path / "in")
    known = {key: value for index in before for key, value in tags(index).items()}
    first, second = list(known)[:2]
    folder = needs(tmp_path / "m", {first: "both", second: "neither", "elsewhere/0": "audio"})
    assert main(["tag", folder, pattern, "--out", str(tmp_path / "out")]) == 0
    assert "2 of 3 measured items were found: needs:both 1, needs:neither 1" in capsys.readouterr().out
    made = of(tmp_path / "out")
    for old, new in zip(before, made, strict=True):
        assert [new.media_bytes(row) for row in range(len(new.clips))] == [
            old.media_bytes(row) for row in range(len(old.clips))
        ]
    found = {key: value for index in made for key, value in tags(index).items()}
    others = {key: [tag for tag in value if not tag.startswith("needs:")] for key, value in known.items()}
    assert found == {**others, first: [*others[first], "needs:both"], second: [*others[second], "needs:neither"]}
    assert tags(before[0])[first] == known[first]


def test_tags_that_nothing_measured_do_not_stand_beside_those_that_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = {"task": "qa", "question": "?", "answer": "!", "tags": ["needs:audio", "topic:speech"]}
    records = [Record(key=f"c{number}", content={"items": [item]}, media={}) for number in range(2)]
    write_shards(iter(records), out=tmp_path / "in", name="a")
    folder = needs(tmp_path / "m", {"c0/0": "neither"})
    assert main(["tag", folder, str(tmp_path / "in" / "a-*.tar"), "--out", str(tmp_path / "out")]) == 0
    assert "1 items that were not measured are kept without" in capsys.readouterr().out
    (index,) = of(tmp_path / "out")
    assert tags(index) == {"c0/0": ["topic:speech", "needs:neither"], "c1/0": ["topic:speech"]}


def test_only_keeps_the_items_of_a_tag_so_that_a_gate_can_ask_about_them(tmp_path: Path) -> None:
    pattern = build.shards(tmp_path / "in", count=4, per_shard=2)
    keys = [key for index in of(tmp_path / "in") for key in tags(index)]
    folder = needs(tmp_path / "m", {keys[0]: "audio", keys[-1]: "video"})
    assert main(["tag", folder, pattern, "--out", str(tmp_path / "out"), "--only", "needs:audio"]) == 0
    (index,) = of(tmp_path / "out")
    assert next(iter(tags(index).values()))[-1:] == ["needs:audio"]
    assert len(index.items) == 1


def test_what_cannot_be_tagged_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = build.shards(tmp_path / "in", count=2, per_shard=2)
    folder = needs(tmp_path / "m", {"elsewhere/0": "audio"})
    out = ["--out", str(tmp_path / "out")]
    assert main(["tag", folder, pattern, *out]) == 2
    assert "none of the 1 items" in capsys.readouterr().err
    assert main(["tag", str(tmp_path / "in"), pattern, *out]) == 2
    assert "arms=no_sound,no_picture" in capsys.readouterr().err
    assert main(["tag", folder, pattern, "--out", str(tmp_path / "in")]) == 2
    assert main(["tag", folder, pattern, *out, "--only", "needs:sleep"]) == 2
    (tmp_path / "m" / "needs.jsonl").write_text('{"key": "a", "tags": ["loud"]}\n')
    assert main(["tag", folder, pattern, *out]) == 2
    assert "is no needs.jsonl" in capsys.readouterr().err
