"""`data.over_budget=fewer_frames`: what is longer than the budget is shown with fewer frames; media are never cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from arcvideo.feed.source import Source
from arcvideo.layout import MediaLayout
from arcvideo.lineage.manifest import read_manifest
from arcvideo.lineage.parents import resolve_parent
from arcvideo.media.frames import time_spans
from arcvideo.model.arc_hunyuan.parts import rows_per_frame
from arcvideo.planning.mixture import open_mixture
from arcvideo.planning.plan import Plan
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.shards.write import Record, write_shards
from arcvideo.stage import run_stage
from arcvideo.types import Batch, Media
from tests.compose import settings
from tests.conftest import SmallWorld
from tests.data import build

LAYOUT = MediaLayout(image_size=128, mel_bins=80, audio_positions=400, audio_pooling=10)
SECONDS = {"video": 30.0, "silent": 24.0, "sound": 20.0, "short": 3.0}
BUDGET = 180


def long_records() -> Iterator[Record]:
    """A clip of each kind, with a short question and with a span."""
    media = {
        "video": {"mp4": build.mp4(30.0)},
        "silent": {"mp4": build.mp4(24.0, sound=False)},
        "sound": {"wav": build.wav(20.0)},
        "short": {"mp4": build.mp4(3.0)},
    }
    for key, files in media.items():
        rows = [
            {"task": "qa", "question": "what is shown?", "answer": "red " * 60},
            {"task": "grounding", "question": "when is red shown?", "span": [1.0, 2.0]},
        ]
        yield Record(key=key, content={"items": rows}, media=files)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("long")
    write_shards(long_records(), out=folder)
    return str(folder / "*.tar")


def chosen(pattern: str, **changes: object) -> DataSettings:
    fields = {"wording": "brief", "token_budget": BUDGET, "over_budget": "fewer_frames", **changes}
    return DataSettings(sources={"long": SourceSettings(shards=pattern, items_per_clip=0)}, **fields)  # type: ignore[arg-type]


def opened(data: DataSettings) -> Source:
    return Source(data, layout=LAYOUT, tokenizer=build.tokenizer(), seed=1)


def epoch(source: Source) -> list[Batch]:
    return [batch for step in range(source.steps_per_epoch) for batch in source.batches(step).batches]


def answers(batches: list[Batch]) -> dict[str, list[int]]:
    """Supervised ids of each sample."""
    return {
        key: batch.target_ids[batch.target_samples == number].tolist()
        for batch in batches
        for number, key in enumerate(batch.keys)
    }


def test_long_clips_get_the_frames_that_fit_and_rows_are_as_long_as_planned(pattern: str) -> None:
    source = opened(chosen(pattern))
    batches = epoch(source)
    planned = [sum(f.tokens for f in pack) for step in range(source.steps_per_epoch) for pack in source.plan.step(step)]
    assert [batch.input_ids.numel() for batch in batches] == planned
    assert max(planned) <= BUDGET
    for batch in batches:
        frames = sum(media.frame_count for media in batch.media)
        assert (batch.input_ids == source.specials.image).sum() == frames * LAYOUT.tokens_per_frame
    (table,) = source.tables
    found = {table.key(clip): (int(table.frames[clip]), int(table.frame_limit[clip])) for clip in range(table.clips)}
    assert found["short"] == (3, LAYOUT.max_frames)
    per_frame = LAYOUT.tokens_per_frame + 2
    for clip in range(table.clips):
        if table.key(clip) != "short":
            longest = max(family.tokens for pack in _packs(source.plan) for family in pack if family.clip == clip)
            frames = found[table.key(clip)][0]
            assert frames < SECONDS[table.key(clip)]
            assert longest <= BUDGET < longest + per_frame, "one more frame would not have fitted"


def _packs(plan: Plan) -> list[tuple]:
    return [plan.epoch(0).pack(number) for number in range(plan.epoch(0).packs)]


def test_answers_and_spans_are_those_of_an_unlimited_budget(pattern: str) -> None:
    tight, roomy = epoch(opened(chosen(pattern))), epoch(opened(chosen(pattern, token_budget=4096)))
    assert answers(tight) == answers(roomy)
    assert len(answers(tight)) == 8


def test_frames_cover_the_whole_clip_and_say_so(pattern: str) -> None:
    source = opened(chosen(pattern))
    read = source._loaders[0].read
    seen: dict[str, torch.Tensor] = {}

    def remember(data: bytes, **how: object) -> object:
        clip = read(data, **how)
        seen[str(how["name"]).split(" ")[0]] = clip.frame_times
        return clip

    source._loaders[0].read = remember  # type: ignore[assignment]
    epoch(source)
    (table,) = source.tables
    for clip in range(table.clips):
        key, frames = table.key(clip), int(table.frames[clip])
        spans = time_spans(duration=SECONDS[key], max_frames=int(table.frame_limit[clip]))
        np.testing.assert_allclose(seen[key].numpy(), spans, atol=0.05)
        assert len(spans) == frames


def test_sound_is_spread_over_the_granted_frames_within_their_tokens(pattern: str) -> None:
    for media in _media(epoch(opened(chosen(pattern)))):
        assert media.frame_count <= media.seconds <= 2 * media.frame_count
        rows = rows_per_frame(media.seconds, max_num_frame=media.frame_count, rows_per_second=5)
        assert rows <= LAYOUT.tokens_per_frame
        if media.mel is not None:
            assert media.mel.shape[0] * LAYOUT.chunk_seconds >= media.seconds


def _media(batches: list[Batch]) -> list[Media]:
    return [media for batch in batches for media in batch.media]


def test_reduced_clips_are_counted(pattern: str) -> None:
    source = opened(chosen(pattern))
    counts = source.counts()["long"]
    assert (counts["clips_with_fewer_frames"], counts["over_budget"], counts["items"]) == (3, 0, 8)
    assert source.mixture(1)["long"]["realised"]["clips_with_fewer_frames"] == 3
    assert opened(chosen(pattern, token_budget=4096)).counts()["long"]["clips_with_fewer_frames"] == 0


def test_too_few_frames_drop_the_item_and_leave_the_others_their_frames(pattern: str) -> None:
    (loose,) = _tables(chosen(pattern))
    (strict,) = _tables(chosen(pattern, min_frames=12))
    assert strict.dropped > 0
    assert strict.items + strict.dropped == loose.items
    kept = {strict.key(clip): int(strict.frames[clip]) for clip in range(strict.clips)}
    assert kept.pop("short") == 3, "a clip that fits as it is has no need of twelve"
    assert min(kept.values()) >= 12


def _tables(data: DataSettings) -> list:
    return open_mixture(data, layout=LAYOUT, tokenizer=build.tokenizer(), progress=False)


def test_drop_and_error_do_as_before(pattern: str) -> None:
    (dropped,) = _tables(chosen(pattern, over_budget="drop"))
    assert {dropped.key(clip) for clip in range(dropped.clips)} == {"short"}
    assert (dropped.dropped, dropped.shortened) == (6, 0)
    with pytest.raises(ValueError, match="fewer_frames or drop"):
        _tables(chosen(pattern, over_budget="error"))


def test_another_budget_is_another_clip_for_every_cache(pattern: str) -> None:
    tight, roomy = (_media(epoch(opened(chosen(pattern, token_budget=size)))) for size in (BUDGET, 4096))
    shared = {media.key for media in tight} & {media.key for media in roomy}
    assert len(shared) == 1, "only the short clip is shown alike"


@pytest.mark.slow
def test_a_stage_trains_on_reduced_clips(small_world: SmallWorld, tmp_path: Path) -> None:
    small = ["data.token_budget=100", "data.over_budget=fewer_frames", "evaluation.items=2"]
    config = settings("stage=sft", f"run_dir={tmp_path}", *small_world.overrides, *small)
    parent = resolve_parent(run_dir=tmp_path, stage="sft", parent=None, override=Path(config.parent or ""))
    run_stage(config, parent=parent)
    manifest = read_manifest(config.stage_dir)
    assert manifest.steps == 3
    reduced = {name: row["realised"]["clips_with_fewer_frames"] for name, row in manifest.mixture.items()}
    assert max(reduced.values()) > 0
