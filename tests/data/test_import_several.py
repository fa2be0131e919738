"""Conversations about several media, and lists of frames, from annotation files to shards."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arcvideo.data.shards import main
from arcvideo.media.clip import clip_of_frames, read_clip
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from arcvideo.media.still import read_still, video_of_stills
from arcvideo.shards.index import ShardIndex, ensure_indexes
from tests.data import build


def still(shade: int, kind: str = "PNG", size: tuple[int, int] = (80, 48)) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(target, kind)
    return target.getvalue()


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "a.mp4").write_bytes(build.mp4(2.0))
    (folder / "b.mp4").write_bytes(build.mp4(1.0, shade=9))
    (folder / "c.wav").write_bytes(build.wav(1.0))
    for number in range(4):
        (folder / f"f{number}.png").write_bytes(still(40 * number + 20))
    return folder


def imported(rows: list[dict[str, Any]], media: Path, out: Path, *, kind: str = "sharegpt") -> tuple[ShardIndex, Any]:
    annotations = out / "rows.json"
    out.mkdir()
    annotations.write_text("\n".join(map(json.dumps, rows)))
    words = ["import", "--format", kind, "--annotations", str(annotations), "--videos", str(media), "--out", str(out)]
    assert main([*words, "--name", "x", "--task", "qa", "--workers", "0"]) == 0
    (index,) = ensure_indexes(sorted(out.glob("x-*.tar")), progress=False)
    lines = (out / "x.quarantine.jsonl").read_text().splitlines() if (out / "x.quarantine.jsonl").exists() else []
    return index, [json.loads(line) for line in lines]


def chat(*content: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": part} for number, part in enumerate(content)]


def test_several_media_stand_where_the_tags_of_their_kinds_stand(media: Path, tmp_path: Path) -> None:
    columns = {
        "messages": chat("Look <image>\nthen <video>\nand <image>\nWhat?", "A.", "<audio>\nHeard?", "Yes."),
        "images": ["f0.png", "f1.png"], "videos": ["a.mp4"], "audios": ["c.wav"],
    }  # fmt: skip
    parts = {
        "messages": chat(
            [
                {"type": "text", "text": "Look "}, {"type": "image", "image": "f0.png"},
                {"type": "text", "text": "then "}, {"type": "video", "video": "a.mp4"},
                {"type": "text", "text": "and "}, {"type": "image_url", "image_url": {"url": "f1.png"}},
                {"type": "text", "text": "What?"},
            ],
            "A.",
            [{"type": "audio", "audio": "c.wav"}, {"type": "text", "text": "Heard?"}],
            "Yes.",
        )
    }  # fmt: skip
    for number, row in enumerate((columns, parts)):
        index, refused = imported([row], media, tmp_path / str(number))
        assert refused == []
        (item,) = index.record(0)["items"]
        assert item["question"] == "Look <video>\nthen <video>\nand <video>\nWhat?"
        assert item["turns"] == [{"question": "<video>\nHeard?", "answer": "Yes."}]
        files = ["f0.png", "a.mp4", "f1.png", "c.wav"]
        assert [index.media_bytes(0, part=part)[0] for part in range(4)] == [
            (media / one).read_bytes() for one in files
        ]


def test_without_tags_all_come_first_and_a_wrong_number_of_tags_is_refused(media: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "good", "messages": chat("What?", "A."), "videos": ["a.mp4", "b.mp4"]},
        {"id": "bad", "messages": chat("<video>\nWhat?", "A."), "videos": ["a.mp4", "b.mp4"]},
        {"id": "gone", "messages": chat("What?", "A."), "videos": ["a.mp4", "none.mp4"]},
    ]
    index, refused = imported(rows, media, tmp_path / "out")
    assert [(one["key"], one["reason"]) for one in refused] == [("bad", "several_media"), ("gone", "no_media")]
    assert index.media_count(0) == 2


def test_rows_about_the_same_media_in_the_same_order_are_one_record(media: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": chat("What?", "A."), "videos": ["a.mp4", "b.mp4"]},
        {"messages": chat("Why?", "B."), "videos": ["a.mp4", "b.mp4"]},
        {"messages": chat("What?", "A."), "videos": ["b.mp4", "a.mp4"]},
    ]
    index, _ = imported(rows, media, tmp_path / "out")
    assert [len(index.record(row)["items"]) for row in range(len(index.clips))] == [2, 1]


def test_records_may_name_a_list_of_media(media: Path, tmp_path: Path) -> None:
    items = [{"task": "qa", "question": "<video> or <video>?", "answer": "the first"}]
    index, _ = imported([{"media": ["a.mp4", "c.wav"], "items": items}], media, tmp_path / "out", kind="records")
    assert [bool(medium["has_video"]) for medium in index.media(0)] == [True, False]


@pytest.mark.parametrize(
    "video",
    [
        {"frames": ["f0.png", "f1.png", "f2.png"], "times": [0.5, 1.5, 2.5]},
        {"video": ["f0.png", "f1.png", "f2.png"], "fps": 1.0},
    ],
)
def test_a_list_of_frames_is_a_video(video: dict[str, Any], media: Path, tmp_path: Path) -> None:
    part = {"type": "video", **video}
    row = {"messages": chat([part, {"type": "text", "text": "What?"}], "A.")}
    index, refused = imported([row], media, tmp_path / "out")
    assert refused == []
    (medium,) = index.media(0)
    assert medium["duration"] == pytest.approx(3.0)
    clip = read_clip(index.media_bytes(0)[0], name="clip", layout=build.LAYOUT)
    assert clip.frames[:, 0, 40, 20].tolist() == [20, 60, 100]


def test_frames_without_times_are_refused(media: Path, tmp_path: Path) -> None:
    good = {"messages": chat("<video>\nWhat?", "A."), "videos": ["a.mp4"]}
    row = {"messages": chat([{"type": "video", "video": ["f0.png", "f1.png"]}], "A.")}
    _, (refused,) = imported([good, row], media, tmp_path / "out")
    assert refused["reason"] == "bad_times"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("times", [[0.0, 1.0, 2.0, 3.0], [0.0, 0.5, 2.2, 7.0], [1.0], [0.5, 1.25, 2.0]])
def test_frames_given_and_the_video_of_them_are_the_same_clip(kind: str, times: list[float]) -> None:
    stills = [still(20 + 40 * number, kind) for number in range(len(times))]
    frames = [read_still(one, name="frame", limits=MediaLimits()) for one in stills]
    video = read_clip(video_of_stills(stills, times=times), name="video", layout=build.LAYOUT)
    given = clip_of_frames(frames, times=times, layout=build.LAYOUT)
    assert given.duration == pytest.approx(video.duration)
    assert np.array_equal(given.frames, video.frames)
    assert np.array_equal(given.frame_times, video.frame_times)


def test_frames_of_several_sizes_make_no_video() -> None:
    with pytest.raises(MediaError, match="one type and size"):
        video_of_stills([still(1), still(2, size=(64, 64))], times=[0.0, 1.0])
