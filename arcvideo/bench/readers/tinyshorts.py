"""TinyShorts, and any other shards of ours: held-out records as questions, their media unpacked once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcvideo.bench.item import Bench, BenchItem, Reader
from arcvideo.bench.questions import Questions, entry
from arcvideo.files import write_whole
from arcvideo.shards.index import ShardIndex, ensure_indexes
from arcvideo.shards.members import read_groups
from arcvideo.tasks import RecordError

SOURCE = "python -m arcvideo.synthetic"
LAYOUT = "test-000000.tar, ... as `python -m arcvideo.synthetic` writes them, or other shards with shards=PATTERN"
UNPACKED = ".arcvideo-media"


def _read(folder: Path, options: Mapping[str, str]) -> Bench:
    """Return records of shards (docs/data-format.md): every item that the index takes is a question."""
    pattern = options.get("shards", "test-*.tar")
    shards = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not shards:
        raise ValueError(f"{folder}: no shards {pattern}; wanted: {LAYOUT}")
    media = Path(options["media"]).expanduser().absolute() if "media" in options else folder / UNPACKED
    questions = Questions(name="tinyshorts" if "shards" not in options else "shards")
    for index in ensure_indexes(shards, workers=min(os.cpu_count() or 1, 8)):
        for problem in index.problems():
            questions.refuse(problem.key, reason=problem.reason, detail=f"{problem.shard}: {problem.detail}")
        _read_shard(questions, index, media=media)
    return questions.bench(source=SOURCE, folder=folder)


def _read_shard(questions: Questions, index: ShardIndex, *, media: Path) -> None:
    extensions = {member.offset: member.extension for group in read_groups(index.shard)[0] for member in group.members}
    clips: dict[int, Path] = {}

    def make(ident: str, row: Any) -> BenchItem:
        number, item = row
        if number not in clips:
            clips[number] = _unpacked(index, number, extensions=extensions, media=media)
        fields = entry(item)
        return BenchItem(
            id=ident,
            clip=clips[number],
            task=str(fields["task"]),
            fields=fields,
            tags=tuple(str(tag) for tag in fields.get("tags") or ()),
        )

    questions.read(_rows(index), make)


def _rows(index: ShardIndex) -> Iterator[tuple[str, Any]]:
    for number, clip in enumerate(index.clips):
        try:
            items = index.record(number)["items"]
        except RecordError as error:
            yield index.key(number), error
            continue
        start = int(clip["item_start"])
        for item in index.items[start : start + int(clip["item_count"])]:
            yield f"{index.key(number)}/{int(item['number'])}", (number, items[int(item["number"])])


def _unpacked(index: ShardIndex, number: int, *, extensions: Mapping[int, str], media: Path) -> Path:
    """Return the media file of a record, named by its content: shards that are written again bring files of their own.

    Raises:
        RecordError: `no_media`; `sound_beside`: the sound is a file of its own, and a question has one file;
            `not_unpacked`: there is no room for it.
    """
    clip = index.clips[number]
    if not clip["media_size"]:
        raise RecordError("no_media", "a record of text alone")
    if clip["sound_size"]:
        raise RecordError("sound_beside", "its sound is a member of its own; join the two in one file")
    extension = extensions.get(int(clip["media_offset"]), "media")
    stem = re.sub(r"[^\w-]", "_", index.key(number))[-80:]
    path = media / f"{stem}-{bytes(clip['digest'])[:8].hex()}.{extension}"
    if not path.is_file() or path.stat().st_size != int(clip["media_size"]):
        try:
            media.mkdir(parents=True, exist_ok=True)
            write_whole(path, index.media_bytes(number)[0])
        except OSError as error:
            raise RecordError("not_unpacked", f"{error}; media=FOLDER unpacks it elsewhere") from None
    return path


TINYSHORTS = Reader(
    read=_read,
    metrics=("mcq_accuracy", "grounding_miou"),
    layout=LAYOUT,
    options={
        "shards": "other shards of the folder, like train-*.tar",
        "media": f"folder for the unpacked media; {UNPACKED} in the folder when it is left out",
    },
)
