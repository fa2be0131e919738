"""Every kind of damage between good clips: each is written down with its reason, and nothing else changes."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arcvideo.data.quarantine import QuarantineBudgetError
from arcvideo.data.settings import DataSettings, QuarantineSettings
from arcvideo.data.source import Source
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
    return patched(build.png(), 16, struct.pack(">II", 100_000, 100_000))


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
        "cut.png": picture[: len(picture) // 2],
        "absurd.png": absurd_size(),
        "cut.jpg": jpeg.getvalue()[:200],
        "empty.webp": b"RIFF\x04\x00\x00\x00WEBP",
        "headless.wav": build.wav()[:20],
        "silentless.wav": build.wav()[:44],
        "endless.wav": endless(),
        "noise.mp3": bytes(np.random.default_rng(3).integers(0, 255, 3000, dtype=np.uint8)),
        "cut.ogg": b"OggS" + bytes(200),
        "flac-header.flac": b"fLaC" + bytes(34),
    }


JSON_KINDS: dict[str, bytes] = {
    "broken": b'{"items": [',
    "not-utf8": b'{"items": "\xff\xfe"}',
    "not-an-object": b"[1, 2]",
    "null": b"null",
    "deep": b"[" * 50_000,
    "no-items": b"{}",
    "items-of-another-type": b'{"items": "x"}',
    "empty-file": b"",
}
ITEM_KINDS: dict[str, dict[str, Any]] = {
    "missing-answer": {"task": "qa", "question": "what?"},
    "empty-answer": {"task": "qa", "question": "what?", "answer": "  "},
    "unknown-task": {"task": "poem", "answer": "red"},
    "letter-out-of-range": {"task": "mcq", "question": "?", "options": ["a", "b"], "answer": "C"},
    "repeated-options": {"task": "mcq", "question": "?", "options": ["a", "a"], "answer": "A"},
    "reversed-span": {"task": "grounding", "question": "when?", "span": [5, 2]},
    "span-not-a-number": {"task": "grounding", "question": "when?", "span": ["x", float("nan")]},
    "forged-token": {"task": "qa", "question": "what <sep> red", "answer": "blue"},
    "number-as-answer": {"task": "caption", "answer": 7},
}


def members() -> Iterator[tuple[str, bytes]]:
    """A good clip before, between and after the damaged ones."""
    for number, (name, data) in enumerate(media_kinds().items()):
        if number % 5 == 0:
            yield from good(f"good-{number}")
        key, _, extension = name.rpartition(".")
        yield f"media-{key}.{extension}", data
        yield f"media-{key}.json", record()
    for name, content in JSON_KINDS.items():
        yield f"json-{name}.png", build.png()
        yield f"json-{name}.json", content
    for name, item in ITEM_KINDS.items():
        yield f"item-{name}.png", build.png()
        yield f"item-{name}.json", record(items=[item])
    yield "pickled.png", build.png()
    yield "pickled.pkl", b"\x80\x04."
    yield "pickled.json", record()
    yield "two-pictures.png", build.png()
    yield "two-pictures.jpg", build.png()
    yield "two-pictures.json", record()
    yield "no-record.png", build.png()
    yield "no-media.json", record()
    yield "../outside.json", record(text_only=True)
    yield "/absolute.json", record(text_only=True)
    yield from good("last")
    yield from good("last")  # a key that comes twice


def good(key: str) -> Iterator[tuple[str, bytes]]:
    yield f"{key}.mp4", build.mp4(1.0)
    yield f"{key}.json", record()


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "damaged-000000.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in members():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"link-{kind.decode()}.mp4")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    return path


def opened(shard: Path, *, file: Path, quarantine: QuarantineSettings = TOLERANT) -> Source:
    settings: DataSettings = build.settings(str(shard), packs_per_step=1, quarantine=quarantine)
    return Source(settings, layout=build.LAYOUT, tokenizer=build.tokenizer(), seed=1, quarantine_file=file)


def test_every_damage_is_written_down_and_only_good_clips_are_seen(shard: Path, tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    source = opened(shard, file=file)
    keys = [key for step in range(source.steps_per_epoch) for batch in source.batches(step) for key in batch.keys]
    assert keys
    assert all(key.startswith(("good-", "last")) for key in keys), keys
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(row["source"] == "tiny" and row["stage"] and row["reason"] for row in rows)
    lost = " ".join(row["key"] + row["detail"] for row in rows)
    wanted = [f"media-{name.rpartition('.')[0]}" for name in media_kinds()]
    wanted += [f"json-{name}" for name in JSON_KINDS] + [f"item-{name}" for name in ITEM_KINDS]
    wanted += ["pickled", "two-pictures", "no-record", "no-media", "outside", "absolute", "last", "link-"]
    assert len(wanted) >= 30
    assert not [name for name in wanted if name not in lost]
    counts = source.counts()["tiny"]
    assert counts["planned"] == counts["seen"] + counts["quarantined"]
    assert counts["seen"] == len(keys)


def test_the_same_is_lost_every_time(shard: Path, tmp_path: Path) -> None:
    rows = []
    for name in ("one", "other"):
        source = opened(shard, file=tmp_path / name)
        for step in range(source.steps_per_epoch):
            source.batches(step)
        rows.append((tmp_path / name).read_text())
    assert rows[0] == rows[1]


@pytest.mark.parametrize("budget", [QuarantineSettings(max_rate=0.5), QuarantineSettings(max_rate=1.0, max_count=5)])
def test_a_budget_stops_with_a_summary(shard: Path, tmp_path: Path, budget: QuarantineSettings) -> None:
    with pytest.raises(QuarantineBudgetError, match=r"data\.sources\.tiny: \d+ quarantined .* x ") as caught:
        opened(shard, file=tmp_path / "quarantine.jsonl", quarantine=budget)
    assert "Repair the shards, or raise the budget" in str(caught.value)
