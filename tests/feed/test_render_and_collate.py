from __future__ import annotations

import numpy as np
import pytest
import torch

from arcvideo.feed.collate import Rendered, collate, collate_groups
from arcvideo.feed.prompts import Prompt
from arcvideo.model.special import special_ids
from arcvideo.planning.table import prefix_tokens
from arcvideo.render import (
    encode,
    media_length,
    render_branch,
    render_prefix,
    split_question,
)
from arcvideo.tasks import RecordError
from arcvideo.types import Media, Sample, Turn
from tests.data.build import LAYOUT, tokenizer

SPECIALS = special_ids(tokenizer())


def sample(question: str = "what is shown?", *turns: Turn, answer: str = "red", **changes: object) -> Sample:
    fields = {"key": "clip/0", "task": "qa", "media_key": "clip", **changes}
    return Sample(turns=(Turn(question=question, answer=answer), *turns), **fields)  # type: ignore[arg-type]


def branch(row: Sample):
    return render_branch(row, tokenizer=tokenizer(), wording="brief")


def prefix(frames: int = 2, before: str = "") -> np.ndarray:
    return render_prefix(frame_count=frames, before=before, tokenizer=tokenizer(), layout=LAYOUT)


def media(frames: int = 2) -> Media:
    return Media(key="m", frame_count=frames, seconds=frames, has_video=False, has_audio=False)


def family(*rows: Sample, frames: int = 2) -> Rendered:
    return Rendered(
        prefix=prefix(frames), media=(media(frames),), samples=rows, branches=tuple(branch(row) for row in rows)
    )


def text(ids: object) -> str:
    return tokenizer().decode(ids)


def test_tokens_of_short_texts_are_kept_and_those_of_long_ones_are_not() -> None:
    question, answer = "what is shown? ", "red " * 400
    assert encode(question, tokenizer=tokenizer()) is encode(question, tokenizer=tokenizer())
    first, second = (encode(answer, tokenizer=tokenizer()) for _ in range(2))
    assert first is not second
    assert first.tolist() == second.tolist()


def test_prefix_is_start_then_frames_then_nothing() -> None:
    frame = "<img><IMG_CONTEXT><IMG_CONTEXT><newline><IMG_CONTEXT></img>"
    assert text(prefix(2)) == f"<|startoftext|><vid>{frame}{frame}</vid>"
    assert text(prefix(1, before="watch ")) == f"<|startoftext|>watch <vid>{frame}</vid>"
    assert len(prefix(2)) == 1 + media_length(2, layout=LAYOUT) == prefix_tokens(0, media_length(2, layout=LAYOUT))


def test_branch_supervises_the_answer_and_its_end_only() -> None:
    row = branch(sample())
    assert text(row.ids) == "\nwhat is shown?<sep>red<|endoftext|>"
    assert text(row.ids[row.is_target]) == "red<|endoftext|>"
    assert text(row.ids[: row.question_tokens]) == "\nwhat is shown?<sep>"


def test_instruction_follows_the_question() -> None:
    row = branch(sample(instruction="mcq"))
    assert text(row.ids[: row.question_tokens]) == "\nwhat is shown?\nThink, then give the option.<sep>"


def test_every_turn_is_supervised() -> None:
    row = branch(sample("what?", Turn(question="why?", answer="so")))
    assert text(row.ids) == "\nwhat?<sep>red<|endoftext|>why?<sep>so<|endoftext|>"
    assert text(row.ids[row.is_target]) == "red<|endoftext|>so<|endoftext|>"
    assert text(row.ids[: row.question_tokens]) == "\nwhat?<sep>"


def test_text_only_starts_by_itself() -> None:
    row = branch(sample(media_key=None))
    assert text(row.ids) == "<|startoftext|>what is shown?<sep>red<|endoftext|>"
    assert not row.is_target[0]


@pytest.mark.parametrize(
    ("question", "before", "after"),
    [("see <video>\nwhat?", "see ", "what?"), ("<video>\nwhat?", "", "what?"), ("what?", "", "what?"),
     ("see <video>what?", "see ", "what?")],
)  # fmt: skip
def test_media_tag_places_the_frames(question: str, before: str, after: str) -> None:
    row = sample(question)
    assert (split_question(row).before, split_question(row).after) == (before, after)
    assert text(branch(row).ids).startswith(f"\n{after}<sep>")


@pytest.mark.parametrize(
    "row",
    [
        sample("<video>\n<video>\nwhat?"),
        sample("what?", Turn(question="<video>\nwhy?", answer="so")),
        sample("<video>\nwhat?", media_key=None),
    ],
)
def test_misplaced_media_tags_are_refused(row: Sample) -> None:
    with pytest.raises(RecordError, match="bad_media_tag"):
        branch(row)


@pytest.mark.parametrize("forged", ["<sep>", "<IMG_CONTEXT>", "</vid>", "<|endoftext|>"])
def test_text_cannot_forge_structure(forged: str) -> None:
    with pytest.raises(RecordError, match="special_in_text"):
        branch(sample(f"what {forged} is?"))
    with pytest.raises(RecordError, match="special_in_text"):
        branch(sample(answer=f"red {forged}"))


def test_packed_row_holds_each_family_once_with_its_branches_as_children() -> None:
    batch = collate(
        [family(sample(), sample("why?", key="clip/1")), family(sample(key="other/0"), frames=1)],
        specials=SPECIALS,
        weighting="token",
    )
    starts = batch.segments.starts.tolist()
    assert batch.segments.parents.tolist() == [-1, 0, 0, -1, 3]
    assert starts[-1] == len(batch.input_ids) == batch.position_ids.shape[1]
    assert [row.frame_count for row in batch.media] == [2, 1]
    assert batch.keys == ("clip/0", "clip/1", "other/0")
    assert SPECIALS.newline not in batch.input_ids
    assert (batch.input_ids == SPECIALS.image).sum() == 3 * LAYOUT.tokens_per_frame
    prefix_size = starts[1]
    for child in (1, 2):
        positions = batch.position_ids[:, starts[child] : starts[child + 1]]
        assert (positions == torch.arange(prefix_size, prefix_size + positions.shape[1])).all()
    assert batch.position_ids[0, starts[3]] == 0  # the next family starts again


def test_targets_are_what_their_positions_predict() -> None:
    rows = [family(sample(), sample("why?", answer="blue green", key="clip/1")), family(sample(key="other/0"))]
    batch = collate(rows, specials=SPECIALS, weighting="sqrt")
    assert (batch.input_ids[batch.target_positions + 1] == batch.target_ids).all()
    for number, answer in enumerate(("red", "blue green", "red")):
        mine = batch.target_samples == number
        assert text(batch.target_ids[mine]) == f"{answer}<|endoftext|>"
        assert torch.allclose(batch.target_weights[mine], torch.tensor(float(mine.sum()) ** -0.5))


@pytest.mark.parametrize(("weighting", "total"), [("token", 4.0), ("sqrt", 2.0), ("sample", 1.0)])
def test_length_weighting(weighting: str, total: float) -> None:
    words = next(answer for answer in ("red blue green", "red blue", "red b") if len(branch(sample(answer=answer)).ids[
        branch(sample(answer=answer)).is_target]) == 4)  # fmt: skip
    batch = collate([family(sample(answer=words))], specials=SPECIALS, weighting=weighting)
    assert batch.target_weights.sum() == pytest.approx(total)


def test_row_without_families_weighs_nothing() -> None:
    batch = collate([], specials=SPECIALS, weighting="sqrt")
    assert batch.target_weights.tolist() == [0.0]
    assert batch.input_ids.tolist() == [SPECIALS.start, SPECIALS.end]


def prompt(row: Sample) -> Prompt:
    made = branch(row)
    return Prompt(
        prefix_ids=prefix(),
        question_ids=made.ids[: made.question_tokens],
        media=(media(),),
        sample=row,
        source="s",
        specials=SPECIALS,
    )


def test_group_has_one_prompt_and_its_completions_as_children() -> None:
    prompts = [prompt(sample()), prompt(sample("why?", key="clip/1"))]
    completions = [[[5, 6, SPECIALS.end], [7]], [[8, 9]]]
    batch = collate_groups(
        prompts,
        completions=completions,
        weights=[[0.5, 1.0], [2.0]],
        specials=SPECIALS,
        extra={"advantages": torch.tensor([1.0, -1.0, 0.0])},
    )
    starts = batch.segments.starts.tolist()
    assert batch.segments.parents.tolist() == [-1, 0, 0, -1, 3]
    assert batch.keys == ("clip/0#0", "clip/0#1", "clip/1#0")
    assert batch.target_ids.tolist() == [5, 6, SPECIALS.end, 7, 8, 9]
    assert batch.target_samples.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.target_weights.tolist() == [0.5, 0.5, 0.5, 1.0, 2.0, 2.0]
    first, second = starts[1] - 1, starts[4] - 1  # the last position of each prompt predicts all first tokens
    assert batch.target_positions.tolist() == [first, starts[1], starts[1] + 1, first, second, starts[4]]
    assert (batch.input_ids[: starts[1]] == prompts[0].input_ids).all()
    assert (batch.position_ids[:, : starts[1]] == prompts[0].position_ids).all()
    assert batch.position_ids[:, starts[2]].tolist() == [prompts[0].length] * 4
    assert len(batch.media) == 2


def test_empty_completion_is_refused() -> None:
    with pytest.raises(ValueError, match="clip/0"):
        collate_groups([prompt(sample())], completions=[[[]]], weights=[[1.0]], specials=SPECIALS)
