"""Several media in one conversation, each where its tag stands: from the shard to logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arcvideo.evaluation.evaluate import without_audio
from arcvideo.feed.source import Source
from arcvideo.model.disk.tokenizer import load_tokenizer
from arcvideo.model.positions import replace_newlines, xd_positions
from arcvideo.model.special import special_ids
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.planning.table import frame_shares
from arcvideo.render import (
    cut_prompt,
    media_ids,
    media_lengths,
    render_branch,
    render_shared,
    render_whole,
    split_question,
)
from arcvideo.shards.index import ensure_indexes
from arcvideo.shards.write import Record, write_shards
from arcvideo.tasks import make_sample
from arcvideo.types import Sample, model_inputs
from tests.data import build
from tests.model.families import assembled

SCATTERED = "Look: <video>\nthen <video> and hear <video>\n what is it?"
RECORDS = {
    "mixed": (
        {"0.png": build.png(), "1.mp4": build.mp4(2.0), "2.wav": build.wav(3.0)},
        [
            {"task": "qa", "question": SCATTERED, "answer": "red"},
            {"task": "qa", "question": SCATTERED, "answer": "blue then"},
            {"task": "mcq", "question": "which?", "options": ["red", "blue"], "answer": "B"},
        ],
    ),
    "turns": (
        {"0.png": build.png(), "1.mp4": build.mp4(1.0, shade=9), "1.wav": build.wav(1.0), "2.png": build.png()},
        [
            {
                "task": "qa", "question": "First <video>\nwhat?", "answer": "red",
                "turns": [{"question": "And <video> with <video>\n?", "answer": "blue"}],
            }
        ],
    ),
    "late": (
        {"mp4": build.mp4(2.0, shade=50)},
        [{"task": "qa", "question": "hello", "answer": "hi",
          "turns": [{"question": "<video>\nwhat?", "answer": "green"}]}],
    ),
    "alone": ({"mp4": build.mp4(2.0, shade=90)}, [{"task": "qa", "question": "<video>\nwhat?", "answer": "white"}]),
}  # fmt: skip


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("interleaved")
    write_shards(
        (Record(key=key, content={"items": items}, media=media) for key, (media, items) in RECORDS.items()), out=folder
    )
    return str(folder / "*.tar")


@pytest.fixture(scope="module", params=["arc_hunyuan_1b", "arc_qwen"])
def family(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    _, model = assembled(request.param, folder)
    return model, load_tokenizer(folder / "base")


def opened(pattern: str, *, tokenizer: Any, layout: Any, supervised: bool = True, **changes: Any) -> Source:
    sources = {"tiny": SourceSettings(shards=pattern, items_per_clip=0)}
    settings = DataSettings(**{"sources": sources, "wording": "brief", "token_budget": 4096, **changes})
    return Source(settings, layout=layout, tokenizer=tokenizer, seed=1, supervised=supervised)


def sample_of(key: str) -> Sample:
    record, number = key.rsplit("/", 1)
    media, items = RECORDS[record]
    count = len({name.partition(".")[0] for name in media}) if "mp4" not in media else 1
    return make_sample(items[int(number)], key=key, media_key=record, media_count=count)


def test_the_index_knows_each_medium(pattern: str) -> None:
    (index,) = ensure_indexes([Path(pattern.replace("*", "shard-000000"))], progress=False)
    rows = {index.key(row): row for row in range(len(index.clips))}
    assert {key: index.media_count(row) for key, row in rows.items()} == {"mixed": 3, "turns": 3, "late": 1, "alone": 1}
    mixed = index.media(rows["mixed"])
    assert [bool(medium["has_video"]) for medium in mixed] == [True, True, False]
    assert [medium["sound_samples"] > 0 for medium in mixed] == [False, True, True]
    assert [index.media_bytes(rows["mixed"], part=part)[0] for part in range(3)] == list(RECORDS["mixed"][0].values())
    assert index.clips[rows["mixed"]]["duration"] == pytest.approx(sum(medium["duration"] for medium in mixed))
    assert index.problems() == []


def test_a_numbered_medium_beside_a_plain_one_is_refused(tmp_path: Path) -> None:
    media = {"mp4": build.mp4(1.0), "0.png": build.png()}
    item = {"task": "qa", "question": "what?", "answer": "red"}
    write_shards([Record(key="a", content={"items": [item]}, media=media)], out=tmp_path)
    (index,) = ensure_indexes([tmp_path / "shard-000000.tar"], progress=False)
    assert [(problem.key, problem.reason) for problem in index.problems()] == [("a", "several_media")]


def test_packed_rows_are_separate_conversations(pattern: str, family: tuple[Any, Any]) -> None:
    """Logits at every target, and the loss's gradient, against forwards of each conversation alone, in float64."""
    model, tokenizer = family
    layout, special = model.settings.layout, special_ids(tokenizer)
    source = opened(pattern, tokenizer=tokenizer, layout=layout)
    batches = [batch for step in range(source.steps_per_epoch) for batch in source.batches(step).batches]
    source.close()
    model.double()
    # transformers' norms of Qwen2.5-VL and its vision rope are float32 whatever the dtype.
    close = {"atol": 2e-5, "rtol": 1e-4} if model.settings.family == "arc_qwen" else {}
    seen = []
    for batch in batches:
        packed, grads = forward(model, model_inputs(batch), batch.target_ids)
        shown = iter(batch.media)
        own, summed = [], {}
        done: dict[str, list[Any]] = {}
        for number, key in enumerate(batch.keys):
            sample = sample_of(key)
            shared = not split_question(sample).later
            group = f"{sample.media_key} {split_question(sample).texts}"
            media = done[group] if shared and group in done else [next(shown) for _ in range(sample.media_count)]
            done[group] = media
            ids = media_ids([one.frame_count for one in media], tokenizer=tokenizer, layout=layout)
            whole = render_whole(sample, media=ids, tokenizer=tokenizer, wording="brief")
            raw, target = torch.from_numpy(whole.ids), np.flatnonzero(whole.is_target)
            mine = batch.target_samples == number
            assert batch.target_ids[mine].tolist() == whole.ids[target].tolist()
            positions = xd_positions(raw, special)
            # The last target of a segment is predicted inside of it, at the same place as in the whole.
            place = batch.target_positions[mine]
            assert torch.equal(batch.position_ids[:, place], positions[:, target - 1])
            inputs = {
                "input_ids": replace_newlines(raw, special=special)[None], "position_ids": positions[None],
                "media": tuple(media), "target_positions": torch.from_numpy(target - 1),
            }  # fmt: skip
            logits, gradient = forward(model, inputs, batch.target_ids[mine])
            own.append(logits)
            for name, value in gradient.items():
                summed[name] = summed.get(name, 0) + value
            seen.append(key)
        assert next(shown, None) is None
        torch.testing.assert_close(packed, torch.cat(own), **close)
        assert grads.keys() == summed.keys()
        for name, value in grads.items():
            torch.testing.assert_close(value, summed[name], msg=name, **close)
    model.float()
    assert sorted(seen) == sorted(f"{key}/{n}" for key, (_, items) in RECORDS.items() for n in range(len(items)))


def forward(model: Any, inputs: dict[str, Any], targets: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    places = inputs.pop("target_positions")
    logits = model(**inputs).logits
    logits = (logits[0] if logits.dim() == 3 else logits)[places]
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_plan_counts_the_tokens_that_are_packed(pattern: str, family: tuple[Any, Any]) -> None:
    model, tokenizer = family
    source = opened(pattern, tokenizer=tokenizer, layout=model.settings.layout)
    packs = [pack for step in range(source.steps_per_epoch) for pack in source.plan.step(step)]
    batches = [batch for step in range(source.steps_per_epoch) for batch in source.batches(step).batches]
    source.close()
    planned = sorted(sum(family.tokens for family in pack) for pack in packs)
    assert planned == sorted(batch.input_ids.numel() for batch in batches)


def test_media_lengths_are_those_of_the_ids(family: tuple[Any, Any]) -> None:
    model, tokenizer = family
    for frames in ([1], [1, 1], [3, 1, 2]):
        ids = media_ids(frames, tokenizer=tokenizer, layout=model.settings.layout)
        assert sum(map(len, ids)) == media_lengths(frames, layout=model.settings.layout)


def test_a_prompt_ends_with_the_first_question_and_shows_its_media_alone(pattern: str, family: tuple[Any, Any]) -> None:
    model, tokenizer = family
    layout, special = model.settings.layout, special_ids(tokenizer)
    sample = sample_of("turns/0")
    ids = media_ids([1, 1, 1], tokenizer=tokenizer, layout=layout)
    whole = render_whole(sample, media=ids, tokenizer=tokenizer, wording="brief")
    shared, asked = cut_prompt(np.zeros(0, np.int64), whole, specials=special)
    assert np.concatenate([shared, asked]).tolist() == whole.ids[: whole.question_tokens].tolist()
    assert tokenizer.decode(asked).replace("\n", "").startswith("what?")
    assert np.isin(shared[-1], [special.img_close, special.vid_close])
    both = sample_of("mixed/0")
    branch = render_branch(both, tokenizer=tokenizer, wording="brief")
    prefix = render_shared(split_question(both).texts, media=ids, tokenizer=tokenizer)
    assert cut_prompt(prefix, branch, specials=special)[0] is prefix
    alone = render_whole(both, media=ids, tokenizer=tokenizer, wording="brief")
    assert np.concatenate([prefix, branch.ids]).tolist() == alone.ids.tolist()


def test_frames_are_shared_out_when_the_limit_is_short() -> None:
    assert frame_shares([3.0, 0.4, 2.5], limit=150) == (3, 1, 3)
    assert frame_shares([100.0, 50.0, 0.1], limit=100) == (66, 33, 1)
    assert frame_shares([5.0] * 4, limit=3) == (1, 1, 1, 1)
    for limit in range(3, 40):
        shares = frame_shares([30.0, 7.2, 11.0], limit=limit)
        assert sum(shares) == limit
        assert min(shares) >= 1


def test_fewer_frames_fit_the_budget_and_keep_every_medium(tmp_path: Path, family: tuple[Any, Any]) -> None:
    model, tokenizer = family
    media = {"0.mp4": build.mp4(6.0), "1.png": build.png(), "2.mp4": build.mp4(3.0, shade=7)}
    item = {"task": "qa", "question": "<video>\n<video>\n<video>\nwhat?", "answer": "red"}
    write_shards([Record(key="long", content={"items": [item]}, media=media)], out=tmp_path)
    budget = media_lengths([2, 1, 2], layout=model.settings.layout) + 120
    source = opened(
        str(tmp_path / "*.tar"), tokenizer=tokenizer, layout=model.settings.layout, token_budget=budget,
        over_budget="fewer_frames", min_frames=1,
    )  # fmt: skip
    (batch,) = source.batches(0).batches
    source.close()
    assert len(batch.media) == 3
    assert sum(one.frame_count for one in batch.media) < 10
    assert batch.input_ids.numel() <= budget


def test_prompts_hold_all_media_and_lose_sound_together(pattern: str, family: tuple[Any, Any]) -> None:
    model, tokenizer = family
    source = opened(pattern, tokenizer=tokenizer, layout=model.settings.layout, supervised=False)
    prompts = {prompt.key: prompt for prompt in source.evaluation()}
    source.close()
    assert [len(prompts[key].media) for key in ("mixed/0", "turns/0", "late/0")] == [3, 1, 0]
    assert prompts["mixed/2"].outline.has_audio
    silent = without_audio(prompts["mixed/0"], audio=model.settings.audio)
    assert not silent.outline.has_audio
