from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.feed.load import Loader
from arcvideo.feed.quarantine import QuarantineBudgetError
from arcvideo.feed.source import Source
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import FrameCacheSettings
from arcvideo.planning.settings import DataSettings, QuarantineSettings
from arcvideo.shards.write import Record, write_shards
from arcvideo.types import Batch, Media, StepData, summed
from tests.data import build


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build.shards(tmp_path_factory.mktemp("shards"))


def source(settings: DataSettings, **changes: object) -> Source:
    return Source(settings, **{"layout": build.LAYOUT, "tokenizer": build.tokenizer(), "seed": 1, **changes})  # type: ignore[arg-type]


def equal(first: Batch, second: Batch) -> bool:
    tensors = ("input_ids", "position_ids", "target_positions", "target_ids", "target_weights")
    return (
        first.keys == second.keys
        and [media.key for media in first.media] == [media.key for media in second.media]
        and all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)
    )


def counted(steps: Sequence[StepData], *, name: str = "tiny") -> dict[str, int]:
    """Items of a source over some steps, by kind."""
    return {kind: of.get(name, 0) for kind, of in summed(step.counts for step in steps).items()}


def broken(folder: Path) -> str:
    """Twelve clips of which one has a picture that cannot be decoded although its file looks whole."""
    records = list(build.records(12))
    whole = bytearray(records[4].media["mp4"])
    start = whole.index(b"mdat") + 4
    whole[start : start + (len(whole) - start) // 2] = bytes((len(whole) - start) // 2)
    records[4] = Record(key=records[4].key, content=records[4].content, media={"mp4": bytes(whole)})
    write_shards(records, out=folder)
    return str(folder / "*.tar")


def test_epoch_shows_every_item_with_its_media(pattern: str) -> None:
    data = source(build.settings(pattern, packs_per_step=2, source_items_per_clip=0))
    keys: list[str] = []
    handed = [data.batches(step) for step in range(data.steps_per_epoch)]
    for step in handed:
        for batch in step.batches:
            keys += batch.keys
            frames = [media.frame_count for media in batch.media]
            image = data.specials.image
            assert (batch.input_ids == image).sum() == sum(frames) * build.LAYOUT.tokens_per_frame
            assert batch.input_ids.numel() <= 512
    assert sorted(keys) == sorted(f"clip-{clip:05d}/{item}" for clip in range(12) for item in range(7))
    assert counted(handed) == {"planned": 84, "seen": 84, "quarantined": 0}


def test_modalities_are_flags_not_errors(pattern: str) -> None:
    data = source(build.settings(pattern, packs_per_step=2))
    media = {}
    for step in range(data.steps_per_epoch):
        for batch in data.batches(step).batches:
            parents = batch.segments.parents.tolist()
            first_keys = [batch.keys[sum(p >= 0 for p in parents[:at])] for at, p in enumerate(parents) if p < 0]
            media.update({key.split("/")[0]: row for key, row in zip(first_keys, batch.media, strict=True)})
    kinds = [(media[f"clip-{n:05d}"].has_video, media[f"clip-{n:05d}"].has_audio) for n in range(4)]
    assert kinds == [(True, True), (True, False), (False, True), (True, False)]
    assert media["clip-00002"].pixels is None
    assert media["clip-00002"].mel.shape == (1, 80, 800)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_do_not_depend_on_workers_or_ranks_or_restarts(pattern: str, workers: int) -> None:
    reference = source(build.settings(pattern, packs_per_step=4))
    settings = build.settings(pattern, packs_per_step=4, workers=workers)
    ranks = [source(settings, rank=rank, world=2) for rank in range(2)]
    for step in (0, 1, 2, 1, 5):  # going back is a restart
        whole = reference.batches(step).batches
        shares = [rank.batches(step).batches for rank in ranks]
        merged = [shares[number % 2][number // 2] for number in range(4)]
        assert all(equal(first, second) for first, second in zip(whole, merged, strict=True))
    for rank in ranks:
        rank.close()


def test_a_prompt_keeps_its_place_whatever_the_ranks_and_whatever_cannot_be_read(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = build.settings(pattern, packs_per_step=2, quarantine=QuarantineSettings(max_rate=1.0))
    read = Loader._fresh

    def sometimes(self: Loader, clip: int, part: int, *, seed: int) -> Media:
        if self.table.key(clip) == "clip-00004":
            raise MediaError("timeout", "clip-00004: not decoded within 120 s")
        return read(self, clip, part, seed=seed)

    monkeypatch.setattr(Loader, "_fresh", sometimes)
    alone = source(damaged, supervised=False)
    steps = range(2 * alone.prompt_steps_per_epoch(6) + 2)

    def placed(data: Source) -> list[tuple[int | None, str]]:
        return [(prompt.place, prompt.key) for step in steps for prompt in data.prompts(step, count=6).prompts]

    whole = placed(alone)
    places, keys = [place for place, _ in whole], [key for _, key in whole]
    assert places == sorted(set(places))
    assert len(places) < 6 * len(steps)  # some could not be read, and their places stay empty
    assert len(set(keys)) < len(keys)  # in the next epoch a key stands at another place
    parts = [placed(source(damaged, supervised=False, rank=rank, world=2)) for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == whole


def test_mixture_of_prompts_counts_the_prompts(pattern: str) -> None:
    data = source(build.settings(pattern, source_tasks={"qa": 1.0, "asr": 1.0}), supervised=False)
    asked = [prompt.sample.task for step in range(5) for prompt in data.prompts(step, count=4).prompts]
    row = data.mixture(5, count=4)["tiny"]["realised"]
    assert (row["items"], row["share"]) == (20, 1.0)
    assert {task: count for task, count in row["tasks"].items() if count} == dict(Counter(asked))


def test_a_step_tells_the_same_counts_whenever_and_whoever_asks(pattern: str) -> None:
    settings = build.settings(pattern, packs_per_step=2)
    straight, other = source(settings), source(settings)
    first = [straight.batches(step).counts for step in range(3)]
    assert [other.batches(step).counts for step in (2, 0, 2, 1)] == [first[2], first[0], first[2], first[1]]
    parts = [source(settings, rank=rank, world=2) for rank in range(2)]
    assert summed(part.batches(1).counts for part in parts) == first[1]


def test_undecodable_clip_is_left_out_counted_and_written_down(tmp_path: Path) -> None:
    settings = build.settings(broken(tmp_path), packs_per_step=1, quarantine=QuarantineSettings(max_rate=0.5))
    file = tmp_path / "quarantine.jsonl"
    data = source(settings, quarantine_file=file)
    handed = [data.batches(step) for step in range(2 * data.steps_per_epoch)]
    keys = [key for step in handed for batch in step.batches for key in batch.keys]
    counts = counted(handed)
    lost = [row for row in map(json.loads, file.read_text().splitlines()) if row["key"].startswith("clip-00004")]
    assert len(lost) == 1  # once, although it was met in two epochs
    assert lost[0]["source"] == "tiny"
    assert lost[0]["stage"] == "media"
    assert lost[0]["reason"]
    assert not [key for key in keys if key.startswith("clip-00004")]
    assert counts["planned"] == counts["seen"] + counts["quarantined"]
    again = source(settings, quarantine_file=file)
    for step in range(again.steps_per_epoch):
        again.batches(step)
    assert len(file.read_text().splitlines()) == 1


def test_what_was_quarantined_is_skipped_after_a_restart(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = build.settings(pattern, packs_per_step=1, quarantine=QuarantineSettings(max_rate=0.5))
    file = tmp_path / "quarantine.jsonl"
    read = Loader._fresh

    def slow_once(self: Loader, clip: int, part: int, *, seed: int) -> Media:
        if self.table.key(clip) == "clip-00004":
            raise MediaError("timeout", "clip-00004: not decoded within 120 s")
        return read(self, clip, part, seed=seed)

    monkeypatch.setattr(Loader, "_fresh", slow_once)
    straight = source(settings, quarantine_file=file)
    first = [straight.batches(step) for step in range(straight.steps_per_epoch)]
    monkeypatch.undo()
    resumed = source(settings, quarantine_file=file)
    again = [resumed.batches(step) for step in range(resumed.steps_per_epoch)]
    for one, other in zip(first, again, strict=True):
        assert all(map(equal, one.batches, other.batches))
    assert resumed.counts() == straight.counts()
    assert counted(again) == counted(first)
    assert counted(again)["quarantined"] > 0
    assert {key for step in again for key in step.lost} == {"clip-00004"}


def test_frame_cache_gives_the_same_tensors_cold_and_warm(pattern: str, tmp_path: Path) -> None:
    cached = build.settings(pattern, packs_per_step=2, frame_cache=FrameCacheSettings(path=str(tmp_path)))
    plain = source(build.settings(pattern, packs_per_step=2)).batches(0).batches
    cold, warm = source(cached).batches(0).batches, source(cached).batches(0).batches
    for one, other, uncached in zip(cold, warm, plain, strict=True):
        assert equal(one, other)
        assert one.keys == uncached.keys
        for a, b, c in zip(one.media, other.media, uncached.media, strict=True):
            assert a.key != c.key  # nothing made from the one is ever taken for the other
            for name in ("pixels", "mel"):
                first, second = getattr(a, name), getattr(b, name)
                assert (first is None and second is None) or torch.equal(first, second)


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_random_frames_from_the_cache_are_the_same_in_any_order_and_new_each_epoch(
    pattern: str, tmp_path: Path, form: str
) -> None:
    def opened(**about: Any) -> Source:
        cache = FrameCacheSettings(path=str(tmp_path), form=form, candidates=3)
        return source(build.settings(pattern, packs_per_step=2, frames="random", frame_cache=cache, **about))

    def shown(data: Source, steps: Iterable[int]) -> dict[int, list[Media]]:
        return {step: [media for batch in data.batches(step).batches for media in batch.media] for step in steps}

    first = opened()
    epoch = first.steps_per_epoch
    cold = shown(first, range(epoch))
    files = {file: file.stat().st_ino for file in tmp_path.glob("??/*.clip")}
    second = shown(first, range(epoch, 2 * epoch))
    warm = shown(opened(workers=2), reversed(range(2 * epoch)))
    for step, medias in {**cold, **second}.items():
        for one, other in zip(medias, warm[step], strict=True):
            assert one.key == other.key
            assert (one.pixels is None) == (other.pixels is None)
            assert one.pixels is None or torch.equal(one.pixels, other.pixels)  # type: ignore[arg-type]
    assert {file: file.stat().st_ino for file in tmp_path.glob("??/*.clip")} == files  # nothing was decoded again
    keys = [{media.key for medias in some.values() for media in medias} for some in (cold, second)]
    assert keys[0] != keys[1]
    pixels = [
        {media.pixels.numpy().tobytes() for medias in some.values() for media in medias if media.pixels is not None}
        for some in (cold, second)
    ]
    assert pixels[0] != pixels[1]


def test_rank_that_lost_everything_gets_a_row_without_weight(tmp_path: Path) -> None:
    (record,) = build.records(1)
    write_shards([record], out=tmp_path)
    made = source(build.settings(str(tmp_path / "*.tar"), quarantine=QuarantineSettings(max_rate=1.0)))
    os.truncate(made.tables[0].indexes[0].shard, 600)  # the disk fails during training
    (batch,) = made.batches(0).batches
    assert batch.target_weights.tolist() == [0.0]
    assert made.counts()["tiny"]["reasons"] == {"Unreadable": 1}


def test_damage_beyond_the_budget_stops_with_a_summary(tmp_path: Path) -> None:
    items = [{"task": "qa", "question": "what?"}, {"task": "caption", "answer": "red"}]
    write_shards([Record(key=f"r{n}", content={"items": items}, media={}) for n in range(10)], out=tmp_path)
    pattern = str(tmp_path / "*.tar")
    with pytest.raises(QuarantineBudgetError, match=r"data.sources.tiny: 10 quarantined .* 10 x no_answer"):
        source(build.settings(pattern))
    data = source(build.settings(pattern, quarantine=QuarantineSettings(max_rate=0.6)))
    assert data.counts()["tiny"]["bad_samples"] == 10
    with pytest.raises(QuarantineBudgetError, match="max_count=9"):
        source(build.settings(pattern, quarantine=QuarantineSettings(max_rate=0.6, max_count=9)))


def test_stored_features_replace_decoding(pattern: str) -> None:
    class Store:
        def has(self, key: str) -> bool:
            return True

        def load(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(1), torch.ones(1)

    settings = build.settings(pattern, packs_per_step=2)
    data, plain = source(settings, features=Store()), source(settings)
    for batch, decoded in zip(data.batches(0).batches, plain.batches(0).batches, strict=True):
        for media, original in zip(batch.media, decoded.media, strict=True):
            assert media.pixels is None
            assert media.mel is None
            assert media.patches is not None
            assert (media.key, media.frame_count, media.seconds) == (
                original.key,
                original.frame_count,
                original.seconds,
            )
            assert (media.has_video, media.has_audio) == (original.has_video, original.has_audio)


def test_random_frames_have_keys_of_their_own(pattern: str) -> None:
    one = source(build.settings(pattern, packs_per_step=2, frames="random"))
    same = source(build.settings(pattern, packs_per_step=2, frames="random"))
    middle = source(build.settings(pattern, packs_per_step=2))
    epoch = one.steps_per_epoch
    keys = [
        {m.key for s in range(epoch) for b in data.batches(s).batches for m in b.media} for data in (one, same, middle)
    ]
    assert keys[0] == keys[1]
    assert not keys[0] & keys[2]
    second = {m.key for s in range(epoch, 2 * epoch) for b in one.batches(s).batches for m in b.media}
    assert not keys[0] & second


def test_modality_can_be_taken_away(pattern: str) -> None:
    silent = source(build.settings(pattern, packs_per_step=2, source_modality="video"))
    media = [m for step in range(silent.steps_per_epoch) for b in silent.batches(step).batches for m in b.media]
    assert media
    assert not any(row.has_audio or row.mel is not None for row in media)
    dropped = source(build.settings(pattern, packs_per_step=2, source_drop_video=0.5, source_drop_audio=0.5))
    media = [m for step in range(dropped.steps_per_epoch) for b in dropped.batches(step).batches for m in b.media]
    assert not any(row.has_audio and row.has_video for row in media)
    assert all(row.has_audio or row.has_video for row in media)


def test_prompts_are_the_questions_without_answers(pattern: str) -> None:
    settings = build.settings(pattern, source_style="think", source_tasks={"mcq": 1.0, "grounding": 1.0})
    whole = source(settings, supervised=False)
    prompts = whole.prompts(2, count=6).prompts
    restarted = source(settings, supervised=False)
    assert [prompt.key for prompt in restarted.prompts(2, count=6).prompts] == [prompt.key for prompt in prompts]
    for prompt in prompts:
        text = build.tokenizer().decode(prompt.question_ids)
        assert text.endswith("<sep>")
        assert "<answer>" not in text
        assert prompt.truth.keys() & {"letter", "span"}
        assert prompt.position_ids.shape == (4, prompt.length)
        assert len(prompt.media) == 1
        assert prompt.duration is not None
        assert prompt.media[0].frame_count - 1 < prompt.duration <= prompt.media[0].frame_count  # short clips
    stream = [prompt.key for step in range(4) for prompt in whole.prompts(step, count=6).prompts]
    assert len(set(stream)) == len(stream) == 24  # an epoch asks each of the 24 items once


@pytest.mark.parametrize("style", ["plain", "think"])
@pytest.mark.parametrize("modality", ["both", "video"])
def test_questions_are_known_without_reading_clips_and_some_can_be_asked(
    pattern: str, style: str, modality: str
) -> None:
    settings = build.settings(pattern, source_style=style, source_modality=modality)
    whole = source(settings, supervised=False)
    prompts = list(whole.evaluation())
    assert whole.questions() == [prompt.outline for prompt in prompts]
    wanted = {prompt.key for prompt in prompts[1::5]}
    assert [prompt.key for prompt in whole.evaluation(only=wanted)] == [prompt.key for prompt in prompts[1::5]]


def test_prompts_are_shared_by_ranks(pattern: str) -> None:
    settings = build.settings(pattern, packs_per_step=2, source_style="think")
    whole = [prompt.key for prompt in source(settings, supervised=False).prompts(1, count=4).prompts]
    shares = [
        [prompt.key for prompt in source(settings, supervised=False, rank=rank, world=2).prompts(1, count=4).prompts]
        for rank in range(2)
    ]
    assert [shares[number % 2][number // 2] for number in range(4)] == whole


def test_evaluation_asks_items_in_order_and_shares_them(pattern: str) -> None:
    settings = build.settings(pattern, packs_per_step=2)
    everything = [prompt.key for prompt in source(settings, supervised=False).evaluation()]
    assert len(everything) == 84
    assert everything == sorted(everything)
    few = list(source(settings, supervised=False).evaluation(per_task=3))
    assert {prompt.task for prompt in few} == {"asr", "caption", "qa", "mcq", "grounding", "summary", "chapters"}
    assert len(few) == 21
    shares = [
        [prompt.key for prompt in source(settings, supervised=False, rank=rank, world=2).evaluation(per_task=3)]
        for rank in range(2)
    ]
    assert shares[0] + shares[1] == [prompt.key for prompt in few]


def test_supervised_think_source_skips_items_without_reasoning(pattern: str) -> None:
    settings = build.settings(pattern, source_style="think")
    with_reasons, prompts = source(settings), source(settings, supervised=False)
    assert (with_reasons.tables[0].items, prompts.tables[0].items) == (30, 84)


def test_segments_of_a_batch_are_in_order(pattern: str) -> None:
    data = source(build.settings(pattern))
    (batch,) = data.batches(0).batches
    starts = batch.segments.starts.tolist()
    assert all(first < second for first, second in pairwise(starts))
    assert all(parent < number for number, parent in enumerate(batch.segments.parents.tolist()))


def test_steps_are_full_even_when_clips_are_few(tmp_path: Path) -> None:
    settings = build.settings(build.shards(tmp_path, count=3), packs_per_step=8, source_items_per_clip=0)
    data = source(settings)
    batches = [batch for step in range(data.steps_per_epoch) for batch in data.batches(step).batches]
    assert len(batches) == 8
    keys = [key for batch in batches for key in batch.keys]
    assert sorted(keys) == sorted(f"clip-{clip:05d}/{item}" for clip in range(3) for item in range(7))
    assert all(family.tokens <= 512 for pack in data.plan.step(0) for family in pack)
    assert [batch.input_ids.numel() for batch in batches] == [
        sum(family.tokens for family in pack) for pack in data.plan.step(0)
    ]
