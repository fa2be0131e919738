"""MVBench: twenty tasks of temporal understanding, 200 questions each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import json_list, media_file, wanted_folder
from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Questions, entry, letter_of, multiple_choice, text
from arcvideo.bench.spans import number
from arcvideo.tasks import RecordError

SOURCE = "https://arxiv.org/abs/2311.17005"
LAYOUT = "json/ with twenty files (action_sequence.json, ...) beside video/ with star/, clevrer/, perception/, ..."
_STAR, _CLEVRER, _PERCEPTION = "star/Charades_v1_480", "clevrer/video_validation", "perception/videos"


@dataclass(frozen=True, kw_only=True)
class _Set:
    """Where the videos of a task lie."""

    videos: str
    """As published; `start` and `end` of a question then say which part of the file is meant."""
    cut: str = ""
    """A later copy whose files are that part already."""
    timed: bool = False
    """Whether its questions have `start` and `end`."""


SETS = {
    "action_sequence": _Set(videos=_STAR, cut="star/Charades_segment", timed=True),
    "action_prediction": _Set(videos=_STAR, cut="star/Charades_segment", timed=True),
    "action_antonym": _Set(videos="ssv2_video", cut="ssv2_video_mp4"),
    "fine_grained_action": _Set(videos="Moments_in_Time_Raw/videos"),
    "unexpected_action": _Set(videos="FunQA_test/test"),
    "object_existence": _Set(videos=_CLEVRER),
    "object_interaction": _Set(videos=_STAR, cut="star/Charades_segment", timed=True),
    "object_shuffle": _Set(videos=_PERCEPTION),
    "moving_direction": _Set(videos=_CLEVRER),
    "action_localization": _Set(videos="sta/sta_video", cut="sta/sta_video_segment", timed=True),
    "scene_transition": _Set(videos="scene_qa/video"),
    "action_count": _Set(videos=_PERCEPTION),
    "moving_count": _Set(videos=_CLEVRER),
    "moving_attribute": _Set(videos=_CLEVRER),
    "state_change": _Set(videos=_PERCEPTION),
    "fine_grained_pose": _Set(videos="nturgbd", cut="nturgbd_convert"),
    "character_order": _Set(videos=_PERCEPTION),
    "egocentric_navigation": _Set(videos="vlnqa"),
    "episodic_reasoning": _Set(videos="tvqa/frames_fps3_hq", cut="tvqa/video_fps3_hq_segment", timed=True),
    "counterfactual_inference": _Set(videos=_CLEVRER),
}


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Fields: video, question, candidates (texts), answer (text); start and end in seconds where a task has them."""
    annotations = wanted_folder(folder, "json", layout=LAYOUT)
    videos = wanted_folder(folder, "video", "videos", layout=LAYOUT)
    chosen = options["tasks"].split("+") if "tasks" in options else list(SETS)
    strange = sorted(set(chosen) - set(SETS))
    if strange:
        raise ValueError(f"mvbench: tasks={strange[0]}: no such task; there are {'+'.join(SETS)}")
    missing = [f"json/{name}.json" for name in chosen if not (annotations / f"{name}.json").is_file()]
    if missing:
        raise ValueError(f"{folder}: {', '.join(missing)} missing; tasks=action_count+... takes some of them alone")
    questions = Questions(name="mvbench" if set(chosen) == set(SETS) else f"mvbench-{'+'.join(chosen)}")
    for name in chosen:
        _read_task(questions, name, path=annotations / f"{name}.json", videos=videos)
    questions.notes.append("the published score is the mean of the tasks' accuracies")
    return questions.bench(source=SOURCE, published=200 * len(chosen), folder=folder)


def _read_task(questions: Questions, name: str, *, path: Path, videos: Path) -> None:
    clip_set = SETS[name]

    def make(ident: str, row: Any) -> BenchItem:
        row = entry(row)
        letter = letter_of(row.get("answer"), options=row.get("candidates"))
        clip, is_cut = _clip(clip_set, row.get("video"), videos=videos)
        return BenchItem(
            id=ident,
            clip=clip,
            task="mcq",
            fields=multiple_choice(text(row, "question"), options=row["candidates"], answer=letter),
            tags=(f"task:{name}",),
            window=_window(row) if clip_set.timed and not is_cut else None,
        )

    questions.read(_rows(name, json_list(path)), make)


def _rows(name: str, content: list[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{name}/{place}", row) for place, row in enumerate(content))


def _clip(clip_set: _Set, name: Any, *, videos: Path) -> tuple[Path, bool]:
    """Return the file of a question, and whether it is the part that is meant already."""
    whole = [videos / clip_set.videos, videos / "data0613" / clip_set.videos]
    if clip_set.cut and (videos / clip_set.cut).is_dir():
        try:
            return media_file(videos / clip_set.cut, name), True
        except RecordError:
            pass
    if isinstance(name, str) and any((place / name).is_dir() for place in whole if "\0" not in name):
        try:
            return media_file(whole, f"{name.rstrip('/')}.mp4"), False
        except RecordError:
            frames = next(place / name for place in whole if (place / name).is_dir())
            detail = f"{frames} is a folder of pictures; make a video of it: ffmpeg -framerate 3 -i {frames}/%05d.jpg "
            raise RecordError("only_frames", f"{detail}{str(frames).rstrip('/')}.mp4") from None
    return media_file(whole, name), False


def _window(row: Mapping[str, Any]) -> tuple[float, float]:
    start, end = number(row.get("start"), name="start"), number(row.get("end"), name="end")
    if not 0 <= start < end:
        raise RecordError("bad_window", f"start={start:g}, end={end:g}: 0 <= start < end in seconds")
    return start, end


MVBENCH = Reader(
    read=_read,
    metrics=("mcq_accuracy",),
    published="mvbench",
    layout=LAYOUT,
    options={"tasks": "some of the tasks, joined by +"},
)
