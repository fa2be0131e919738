"""transformers' `generate` on this model."""

import pytest
import torch
from transformers import GenerationConfig

from arcvideo.model.generation import clips_of_rows
from arcvideo.model.towers.media import normalize_pixels
from tests.model.small import SETTINGS, SPECIAL, Row, clip, prefix, small_model, text
from tests.rollout.world import make_model, tokenizer


@pytest.fixture(scope="module")
def model():
    return small_model(dtype=torch.float64).eval()


def padded(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Return the rows as one left-padded batch."""
    inputs = [row.inputs() for row in rows]
    longest = max(len(item["input_ids"]) for item in inputs)
    ids = torch.full((len(rows), longest), SPECIAL.pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    positions = torch.zeros(len(rows), 4, longest, dtype=torch.int64)
    for index, item in enumerate(inputs):
        start = longest - len(item["input_ids"])
        ids[index, start:], mask[index, start:] = item["input_ids"], 1
        positions[index, :, start:] = item["position_ids"]
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def prompt(*, frames: int, words: int, seed: int) -> Row:
    row = Row()
    start = prefix(frames=frames) if frames else torch.tensor([SPECIAL.start])
    row.add(torch.cat([start, text(words, seed=seed)]))
    return row


def greedy_by_full_forward(model, row: Row, media, *, steps: int) -> list[int]:
    """Return what the whole sequence, computed anew for every token, would say."""
    inputs = row.inputs()
    ids, positions = inputs["input_ids"], inputs["position_ids"]
    said: list[int] = []
    for _ in range(steps):
        logits = model(ids[None], position_ids=positions[None], media=media).logits[0, -1]
        said.append(int(logits.argmax()))
        ids = torch.cat([ids, torch.tensor(said[-1:])])
        positions = torch.cat([positions, torch.full((4, 1), len(ids) - 1)], dim=1)
    return said


@torch.no_grad()
def test_greedy_answers_equal_full_forwards(model):
    row, media = prompt(frames=2, words=6, seed=0), (clip(frames=2),)
    out = model.generate(**padded([row]), media=media, max_new_tokens=6, eos_token_id=None)
    assert out[0, -6:].tolist() == greedy_by_full_forward(model, row, media, steps=6)


@torch.no_grad()
def test_unequal_prompts_together_equal_one_by_one(model):
    rows = [
        prompt(frames=2, words=6, seed=0),
        prompt(frames=0, words=3, seed=1),
        prompt(frames=1, words=9, seed=2),
    ]
    media = [(clip(frames=2, seed=4),), (), (clip(frames=1, seed=5),)]
    together = model.generate(
        **padded(rows), media=[part for parts in media for part in parts], max_new_tokens=5, eos_token_id=None
    )
    for index, row in enumerate(rows):
        alone = model.generate(**padded([row]), media=media[index], max_new_tokens=5, eos_token_id=None)
        assert together[index, -5:].tolist() == alone[0, -5:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("which", ["eod", "eos"])
def test_both_stop_ids_end_an_answer(model, which):
    stop = {"eod": SPECIAL.end, "eos": SPECIAL.eos}[which]
    assert model.generation_config.eos_token_id == [SPECIAL.end, SPECIAL.eos]

    def insist(input_ids, scores):
        return torch.zeros_like(scores).index_fill(1, torch.tensor([stop]), 1.0)

    inputs = padded([prompt(frames=0, words=4, seed=3)])
    out = model.generate(**inputs, max_new_tokens=7, logits_processor=[insist])
    assert out.shape[1] == inputs["input_ids"].shape[1] + 1


@torch.no_grad()
def test_sampling_follows_the_seed_and_gives_every_prompt_its_sequences(model):
    row, media = prompt(frames=2, words=6, seed=0), (clip(frames=2),)
    draw = GenerationConfig(do_sample=True, top_k=20, max_new_tokens=4, num_return_sequences=3, eos_token_id=None)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.generate(**padded([row]), media=media, generation_config=draw)

    first = drawn(0)
    assert first.shape[0] == 3
    assert torch.equal(first, drawn(0))
    assert not torch.equal(first, drawn(1))


@torch.no_grad()
def test_media_of_a_batch_are_repeated_with_their_rows(model):
    rows = [prompt(frames=2, words=4, seed=0), prompt(frames=1, words=4, seed=1)]
    media = (clip(frames=2, seed=4), clip(frames=1, seed=5))
    settings = {"max_new_tokens": 4, "eos_token_id": None, "num_beams": 2}
    together = model.generate(**padded(rows), media=media, **settings)
    for index, row in enumerate(rows):
        alone = model.generate(**padded([row]), media=media[index : index + 1], **settings)
        assert together[index, -4:].tolist() == alone[0, -4:].tolist()


def test_clips_are_given_to_the_rows_whose_tokens_they_fill():
    rows = padded([prompt(frames=frames, words=1, seed=0) for frames in (2, 0, 3)])
    clips = [clip(frames=2), clip(frames=1), clip(frames=2)]
    found = clips_of_rows(clips, rows["input_ids"], image=SPECIAL.image, settings=SETTINGS)
    assert found == [(clips[0],), (), (clips[1], clips[2])]
    with pytest.raises(ValueError, match="row 2"):
        clips_of_rows(clips[:2], rows["input_ids"], image=SPECIAL.image, settings=SETTINGS)


@torch.no_grad()
def test_prompts_with_media_need_their_positions(model):
    inputs = padded([prompt(frames=2, words=4, seed=0)])
    del inputs["position_ids"]
    with pytest.raises(ValueError, match="position_ids"):
        model.generate(**inputs, media=(clip(frames=2),), max_new_tokens=1)


@torch.no_grad()
def test_text_prompts_need_nothing_but_ids(model):
    ids = text(5, seed=7)[None]
    out = model.generate(ids, max_new_tokens=3, eos_token_id=None)
    row = Row()
    row.add(ids[0])
    assert out[0, -3:].tolist() == greedy_by_full_forward(model, row, (), steps=3)


@torch.no_grad()
def test_one_clip_as_plain_tensors(model):
    row, media = prompt(frames=2, words=6, seed=0), clip(frames=2)
    pixels = normalize_pixels(media.pixels, dtype=torch.float64)
    settings = {"max_new_tokens": 4, "eos_token_id": None}
    plain = model.generate(**padded([row]), pixel_values=pixels, mels=media.mel, duration=2, **settings)
    assert plain.tolist() == model.generate(**padded([row]), media=(media,), **settings).tolist()


@torch.no_grad()
def test_stop_strings_end_an_answer():
    model = make_model().eval()
    ids = torch.tensor([tokenizer().encode("Which colour?")])
    (close,) = tokenizer().encode("</answer>")

    def insist(input_ids, scores):
        return torch.zeros_like(scores).index_fill(1, torch.tensor([close]), 1.0)

    stop = {"stop_strings": ["</answer>"], "tokenizer": tokenizer()}
    assert model.generate(ids, max_new_tokens=5, logits_processor=[insist], **stop).shape[1] == ids.shape[1] + 1
    assert model.generate(ids, max_new_tokens=5, logits_processor=[insist]).shape[1] == ids.shape[1] + 5
