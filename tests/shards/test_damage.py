"""Every kind of damage between good clips: each is written down with its reason, and nothing else changes."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arcvideo.feed.quarantine import QuarantineBudgetError
from arcvideo.feed.source import Source
from arcvideo.planning.settings import DataSettings, QuarantineSettings
from arcvideo.shards.write import Record, write_shards
from tests.data import build

TOLERANT = QuarantineSettings(max_rate=1.0, max_count=1000)


def record(**changes: Any) -> bytes:
    return json.dumps({"items": [{"task": "caption", "answer": "red"}]} | changes).encode()


def box(data: bytes, name: bytes) -> int:
    """Where the content of an MP4 box begins."""
    return data.index(name) + 4


def patched(data: bytes, at: int, content: bytes) -> bytes:
    return data[:at] + content + data[at + len(content) :]


def absurd_size() -> bytes:
    """A PNG that announces 100,000 x 100,000 pixels."""
    changed = patched(build.png(), 16, struct.pack(">II", 100_000, 100_000))
    return patched(changed, 29, struct.pack(">I", zlib.crc32(changed[12:29])))


def endless() -> bytes:
    """A WAV whose header promises more than a day of sound, at one sample a second."""
    return patched(build.wav(), 24, struct.pack("<II", 1, 2))


def media_kinds() -> dict[str, bytes]:
    """Extension and bytes of media that no clip may be made of."""
    whole, picture = build.mp4(2.0, shade=7), build.png()
    mdat = box(whole, b"mdat")
    tail = whole.index(b"moov") - 4
    jpeg = io.BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(jpeg, "JPEG")
    return {
        "zero-length.mp4": b"",
        "half.mp4": whole[: len(whole) // 2],
        "moov-less.mp4": whole[:tail],
        "only-moov.mp4": whole[:16] + whole[tail:],
        "garbage.mp4": b"\x17" * 4000,
        "text.mp4": b"this is not a video\n" * 100,
        "html.mp4": b"<!doctype html><html><body>404 Not Found</body></html>",
        "zeroed-picture.mp4": patched(whole, mdat, bytes((tail - mdat) // 2)),
        "no-streams.mp4": whole[:32] + struct.pack(">I", 8) + b"moov",
        "wrong-magic.mp4": b"RIFF" + whole[4:],
        "cut-png.png": picture[: len(picture) // 2],
        "absurd.png": absurd_size(),
        "cut-jpg.jpg": jpeg.getvalue()[:200],
        "empty.webp": b"RIFF\x04\x00\x00\x00WEBP",
        "headless.wav": build.wav()[:20],
        "silentless.wav": build.wav()[:44],
        "endless.wav": endless(),
        "noise.mp3": bytes(np.random.default_rng(3).integers(0, 255, 3000, dtype=np.uint8)),
        "cut-ogg.ogg": b"OggS" + bytes(200),
        "flac-header.flac": b"fLaC" + bytes(34),
    }


JSON_KINDS: dict[str, tuple[bytes, str]] = {
    "broken": (b'{"items": [', "broken_json"),
    "not-utf8": (b'{"items": "\xff\xfe"}', "broken_json"),
    "not-an-object": (b"[1, 2]", "broken_json"),
    "null": (b"null", "broken_json"),
    "deep": (b"[" * 50_000, "broken_json"),
    "no-items": (b"{}", "no_items"),
    "items-of-another-type": (b'{"items": "x"}', "no_items"),
    "empty-file": (b"", "broken_json"),
}
ITEM_KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "missing-answer": ({"task": "qa", "question": "what?"}, "no_answer"),
    "empty-answer": ({"task": "qa", "question": "what?", "answer": "  "}, "no_answer"),
    "unknown-task": ({"task": "poem", "answer": "red"}, "unknown_task"),
    "letter-out-of-range": ({"task": "mcq", "question": "?", "options": ["a", "b"], "answer": "C"}, "bad_answer"),
    "repeated-options": ({"task": "mcq", "question": "?", "options": ["a", "a"], "answer": "A"}, "bad_options"),
    "reversed-span": ({"task": "grounding", "question": "when?", "span": [5, 2]}, "bad_span"),
    "span-not-a-number": ({"task": "grounding", "question": "when?", "span": ["x", float("nan")]}, "bad_span"),
    "span-of-no-length": ({"task": "grounding", "question": "when?", "span": [0.5, 0.5]}, "empty_span"),
    "span-after-the-clip": ({"task": "grounding", "question": "when?", "span": [50, 60]}, "span_outside"),
    "span-beyond-the-clip": ({"task": "grounding", "question": "when?", "span": [0, 100]}, "span_outside"),
    "events-beyond-the-clip": ({"task": "chapters", "events": [[0, 1, "a"], [0, 9, "b"]]}, "span_outside"),
    "forged-token": ({"task": "qa", "question": "what <sep> red", "answer": "blue"}, "special_in_text"),
    "number-as-answer": ({"task": "caption", "answer": 7}, "bad_answer"),
}
WRONG_NAMES = {"png-as-mp4.mp4": "png", "mp4-as-png.png": "mp4", "wav-as-jpg.jpg": "wav"}
"""Media whose content is not what the name says: the content counts."""

MEMBER_KINDS: dict[str, list[tuple[str, bytes]]] = {
    "pickled": [("png", build.png()), ("pkl", b"\x80\x04."), ("json", record())],
    "several_media": [("png", build.png()), ("jpg", build.png()), ("json", record())],
    "no_json": [("png", build.png())],
    "no_media": [("json", record())],
}
"""Reason -> members of a record that is refused for it."""


def members() -> Iterator[tuple[str, bytes]]:
    """A good clip before, between and after the damaged ones."""
    for number, (name, data) in enumerate(media_kinds().items()):
        if number % 5 == 0:
            yield from good(f"good-{number}")
        key, _, extension = name.rpartition(".")
        yield f"media-{key}.{extension}", data
        yield f"media-{key}.json", record()
    for name, (content, _) in JSON_KINDS.items():
        yield f"json-{name}.png", build.png()
        yield f"json-{name}.json", content
    for name, (item, _) in ITEM_KINDS.items():
        yield f"item-{name}.png", build.png()
        yield f"item-{name}.json", record(items=[item])
    for reason, files in MEMBER_KINDS.items():
        for extension, data in files:
            yield f"member-{reason}.{extension}", data
    yield "member-unknown.xyz", b"?"
    yield "member-unknown.json", record()
    media = {"png": build.png(), "mp4": build.mp4(1.0), "wav": build.wav()}
    for name, kind in WRONG_NAMES.items():
        yield f"good-{name}", media[kind]
        yield f"good-{name.partition('.')[0]}.json", record()
    yield "../outside.json", record(text_only=True)
    yield "/absolute.json", record(text_only=True)
    yield from good("last")
    yield from good("last")  # a key that comes twice


def good(key: str) -> Iterator[tuple[str, bytes]]:
    yield f"{key}.mp4", build.mp4(1.0)
    yield f"{key}.json", record()


SPECIAL = {
    "symbolic-link": tarfile.SYMTYPE,
    "hard-link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "pipe": tarfile.FIFOTYPE,
}


def special(tar: tarfile.TarFile) -> None:
    """Members that are no plain files, and one that would be ten gigabytes of holes."""
    for name, kind in SPECIAL.items():
        info = tarfile.TarInfo(f"special-{name}.mp4")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    info = tarfile.TarInfo("special-sparse.mp4")
    info.size, info.pax_headers = 4, {"GNU.sparse.map": "0,4", "GNU.sparse.size": str(10 << 30)}
    tar.addfile(info, io.BytesIO(b"hole"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The corpus; a second shard repeats a key of the first and has lost its end."""
    folder = tmp_path_factory.mktemp("damage")
    with tarfile.open(folder / "damaged-000000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        special(tar)
    records = [Record(key=key, content=json.loads(record()), media={"png": build.png()}) for key in ("last", "cut")]
    (second,) = write_shards(records, out=folder, name="short")
    second.write_bytes(second.read_bytes()[: 4 * 512 + len(build.png()) // 512 * 512])
    return f"{folder}/*.tar"


def opened(shards: str, *, file: Path, quarantine: QuarantineSettings = TOLERANT) -> Source:
    settings: DataSettings = build.settings(shards, packs_per_step=1, quarantine=quarantine)
    return Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=1, quarantine_file=file)


def expected() -> dict[tuple[str, str], tuple[str, str]]:
    """(shard, key) -> stage and reason; reason "" where it is the decoder's to choose."""
    exact = {"zero-length": "no_media", "no-streams": "no_media", "absurd": "too_large", "endless": "too_long"}
    names = [name.rpartition(".")[0] for name in media_kinds()]
    found = {f"media-{name}": ("media", exact.get(name, "")) for name in names}
    found |= {f"json-{name}": ("record", reason) for name, (_, reason) in JSON_KINDS.items()}
    found |= {f"item-{name}/0": ("item", reason) for name, (_, reason) in ITEM_KINDS.items()}
    found |= {f"member-{reason}": ("record", reason) for reason in MEMBER_KINDS}
    found |= {f"special-{name}": ("record", "not_a_file") for name in (*SPECIAL, "sparse")}
    found |= dict.fromkeys(["../outside", "/absolute"], ("record", "unsafe_name"))
    found |= {
        "item-forged-token/0": ("tokens", "special_in_text"),
        "member-unknown": ("record", "no_media"),
        "last": ("record", "duplicate_key"),
    }
    first, second = "damaged-000000.tar", "short-000000.tar"
    return {(first, key): why for key, why in found.items()} | {
        (second, "last"): ("record", "duplicate_key"),
        (second, second): ("shard", "truncated_tar"),
    }


def test_every_damage_is_written_down_and_only_good_clips_are_seen(shards: str, tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    source = opened(shards, file=file)
    keys = [key for step in range(source.steps_per_epoch) for batch in source.batches(step) for key in batch.keys]
    good = {f"good-{number}/0" for number in range(0, len(media_kinds()), 5)}
    assert sorted(keys) == sorted(good | {f"good-{name.partition('.')[0]}/0" for name in WRONG_NAMES} | {"last/0"})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(row["source"] == "tiny" and row["reason"] for row in rows)
    wanted = expected()
    assert {(row["shard"], row["key"]): row["stage"] for row in rows} == {
        at: stage for at, (stage, _) in wanted.items()
    }
    wrong = [row for row in rows if wanted[row["shard"], row["key"]][1] not in ("", row["reason"])]
    assert not wrong
    assert len(rows) == len(wanted) >= 30
    counts = source.counts()["tiny"]
    assert counts["planned"] == counts["seen"] + counts["quarantined"]
    assert counts["seen"] == len(keys)


def test_the_same_is_lost_every_time(shards: str, tmp_path: Path) -> None:
    rows = []
    for name in ("one", "other"):
        source = opened(shards, file=tmp_path / name)
        for step in range(source.steps_per_epoch):
            source.batches(step)
        rows.append((tmp_path / name).read_text())
    assert rows[0] == rows[1]


@pytest.mark.parametrize("budget", [QuarantineSettings(max_rate=0.5), QuarantineSettings(max_rate=1.0, max_count=5)])
def test_a_budget_stops_with_a_summary(shards: str, tmp_path: Path, budget: QuarantineSettings) -> None:
    with pytest.raises(QuarantineBudgetError, match=r"data\.sources\.tiny: \d+ quarantined .* x ") as caught:
        opened(shards, file=tmp_path / "quarantine.jsonl", quarantine=budget)
    assert "Repair the shards, or raise the budget" in str(caught.value)
