"""Benchmarks as they are published, small: annotation files in their layout beside real media of some seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from tests.data.build import mp4

OPTIONS = ["red", "blue", "green", "white"]
LETTERED = ["A. red", "B. blue", "C. green", "D. white"]
SRT = (
    '1\n00:00:00,500 --> 00:00:01,500\n<font color="white" size=".72c">Good</font> morning\n\n'
    "2\n00:00:02,000 --> 00:00:03,000\n<i>all</i>\n"
)


def clip(path: Path, *, seconds: float = 2.0, shade: int = 128) -> Path:
    """Write a film of one grey with a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mp4(seconds, shade=shade))
    return path


def put(path: Path, content: Any) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def lines(path: Path, rows: list[Any]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shortvid(folder: Path) -> None:
    """Two of six dimensions."""
    clip(folder / "videos_compressed/a.mp4")
    kinds = ("Affective Intent", "Humor and Meme")
    rows = [
        {"video": "a.mp4", "question": f"q{n}?", "candidates": LETTERED, "answer": "BD"[n], "problem_type": kind}
        for n, kind in enumerate(kinds)
    ]
    put(folder / "ShortVid-Bench-1k.json", rows)


def charades(folder: Path) -> None:
    """A span inside, and one that ends behind the two seconds of its clip."""
    clip(folder / "Charades_v1_480/3MSZA.mp4")
    text = "3MSZA 0.5 1.5##person turn a light on.\n3MSZA 1.0 2.6##person sits down.\n"
    (folder / "charades_sta_test.txt").write_text(text)


def activitynet(folder: Path) -> None:
    """One video with two sentences."""
    clip(folder / "videos/v_one.mp4")
    content = {"v_one": {"duration": 2.0, "timestamps": [[0, 1.0], [0.5, 2.0]], "sentences": ["He runs.", " He sits."]}}
    put(folder / "captions/val_2.json", content)


def qvhighlights(folder: Path) -> None:
    """One question with one moment, one with two."""
    clip(folder / "videos/NUs_0.0_2.0.mp4")
    rows = [
        {"qid": 7, "query": "A girl cooks.", "duration": 2, "vid": "NUs_0.0_2.0", "relevant_windows": windows}
        for windows in ([[0, 1]],)
    ]
    rows.append({**rows[0], "qid": 8, "relevant_windows": [[0, 0.5], [1, 2]]})
    lines(folder / "highlight_val_release.jsonl", rows)


def timelens(folder: Path) -> None:
    """One question of each set."""
    for name in ("charades", "activitynet", "qvhighlights"):
        clip(folder / f"videos/{name}/v.mp4")
        put(folder / f"{name}-timelens.json", {"v": {"duration": 2.0, "spans": [[0.0, 1.0]], "queries": ["a  man. "]}})


def mvbench(folder: Path) -> None:
    """One question of each of the twenty tasks; the one made of pictures has its video beside them."""
    from arcvideo.bench.readers.mvbench import SETS

    for name, one in SETS.items():
        video = "shot" if name == "episodic_reasoning" else "v.mp4"
        clip(folder / "video" / one.videos / (f"{video}.mp4" if video == "shot" else video))
        if video == "shot":
            (folder / "video" / one.videos / video).mkdir()
        row = {"video": video, "question": "what?", "candidates": OPTIONS, "answer": "green"}
        put(folder / f"json/{name}.json", [row | ({"start": 0.5, "end": 1.5} if one.timed else {})])


def video_mme(folder: Path) -> None:
    """A short video with subtitles and a long one without."""
    rows = []
    for number, duration in enumerate(("short", "long")):
        clip(folder / f"data/id{number}.mp4")
        row = {"video_id": "001", "duration": duration, "domain": "Knowledge", "sub_category": "Law", "url": "https://"}
        row |= {"videoID": f"id{number}", "question_id": f"00{number}-1", "task_type": "Counting Problem"}
        rows.append(row | {"question": "how many?", "options": LETTERED, "answer": "C"})
    (folder / "videomme").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "videomme/test-00000-of-00001.parquet")
    (folder / "subtitle").mkdir()
    (folder / "subtitle/id0.srt").write_text(SRT)


def vcr_bench(folder: Path) -> None:
    """A multiple choice with three of four options, and an open question."""
    clip(folder / "v1/videos/video/set/a.mp4")
    row = {"id": 0, "video_path": "video/set/a.mp4", "duration": 2, "dimension": "Video Plot Analysis"}
    choices = {"A": "red", "B": "blue", "C": "green", "D": ""}
    rows = [
        row | {"question": "which?", "multiple-choice": True, "choices": choices, "answer": "B", "reasoning": ["1."]},
        row
        | {"id": 1, "question": "where?", "multiple-choice": False, "answer": "Kitchen"}
        | {"choices": dict.fromkeys("ABCD", "")},
    ]
    put(folder / "v1/videos/meta_info_video.json", rows)


def video_holmes(folder: Path) -> None:
    """Two films whose questions have the same number."""
    rows = []
    for film in ("f1", "f2"):
        clip(folder / f"videos_cropped/{film}.mp4")
        options = dict(zip("ABCDEF", [*OPTIONS, "black", "grey"], strict=True))
        row = {"video ID": film, "Question ID": 1, "Question Type": "SR", "Question": "who?", "Options": options}
        rows.append(row | {"Answer": "F", "Explanation": "so"})
    put(folder / "test_Video-Holmes.json", rows)


def daily_omni(folder: Path) -> None:
    """Two questions about one clip."""
    clip(folder / "Videos/Ec_l/Ec_l_video.mp4")
    row = {"Choice": LETTERED, "Answer": "B", "video_id": "Ec_l", "Type": "Event Sequence", "video_duration": "30s"}
    put(folder / "qa.json", [row | {"Question": question} for question in ("first?", "second?")])


def worldsense(folder: Path) -> None:
    """Two questions about one video."""
    clip(folder / "videos/AAW.mp4")
    task = {"task_domain": "Recognition", "task_type": "Audio Counting", "question": "what?", "candidates": LETTERED}
    about = {"video_id": "AAW", "duration": "2s", "domain": "Music", "sub_category": "Pop", "audio_class": ["Speech"]}
    put(
        folder / "worldsense_qa.json",
        {"AAW": about | {"task0": task | {"answer": "A"}, "task1": task | {"answer": "D"}}},
    )
    (folder / "subtitles").mkdir()
    (folder / "subtitles/AAW.srt").write_text(SRT)


def tinyshorts(folder: Path) -> None:
    """Four records of four kinds of media."""
    from arcvideo.shards.write import write_shards
    from tests.data.build import records

    write_shards(records(4), out=folder, name="test")


def own(folder: Path) -> None:
    """A question of each kind."""
    clip(folder / "a.mp4")
    rows = [
        {"video": "a.mp4", "id": "x", "question": "which?", "options": OPTIONS, "answer": "B", "tags": ["needs:audio"]},
        {"video": "a.mp4", "question": "when is it red?", "span": [0.5, 1.0], "window": [0.0, 1.5]},
        {"video": "a.mp4", "question": "what?", "answer": "a tone"},
        {"video": "a.mp4", "task": "summary", "answer": "nothing happens"},
    ]
    lines(folder / "questions.jsonl", rows)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "shortvid-bench": shortvid,
    "charades-sta": charades,
    "activitynet-captions": activitynet,
    "qvhighlights": qvhighlights,
    "timelens-bench": timelens,
    "mvbench": mvbench,
    "video-mme": video_mme,
    "vcr-bench": vcr_bench,
    "video-holmes": video_holmes,
    "daily-omni": daily_omni,
    "worldsense": worldsense,
    "tinyshorts": tinyshorts,
    "own": own,
}
"""Name of a benchmark -> what writes it."""
ANNOTATIONS = {
    "shortvid-bench": "ShortVid-Bench-1k.json",
    "charades-sta": "charades_sta_test.txt",
    "activitynet-captions": "captions/val_2.json",
    "qvhighlights": "highlight_val_release.jsonl",
    "timelens-bench": "activitynet-timelens.json",
    "mvbench": "json/action_count.json",
    "video-mme": "videomme/test-00000-of-00001.parquet",
    "vcr-bench": "v1/videos/meta_info_video.json",
    "video-holmes": "test_Video-Holmes.json",
    "daily-omni": "qa.json",
    "worldsense": "worldsense_qa.json",
    "own": "questions.jsonl",
}
"""Name of a benchmark -> a file of its annotations."""
MEDIA = {
    "shortvid-bench": "videos_compressed",
    "charades-sta": "Charades_v1_480",
    "activitynet-captions": "videos",
    "qvhighlights": "videos",
    "timelens-bench": "videos/charades",
    "mvbench": "video",
    "video-mme": "data",
    "vcr-bench": "v1/videos/video",
    "video-holmes": "videos_cropped",
    "daily-omni": "Videos",
    "worldsense": "videos",
}
"""Name of a benchmark -> its folder of media."""
