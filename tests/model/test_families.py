"""What holds of every family: equal to transformers' model of its base, and packed rows equal to separate ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arcvideo.model.disk.loading import load_model, save_model
from arcvideo.model.disk.tokenizer import load_tokenizer
from arcvideo.model.families.table import family_of
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.positions import next_position, replace_newlines, video_ids, xd_positions
from arcvideo.model.special import SpecialIds, special_ids
from arcvideo.model.towers.media import grouped
from arcvideo.render import render_branch
from arcvideo.sampling.sampler import banned_ids, stop_ids
from arcvideo.types import Media, Sample, Segments, Turn
from tests.model.families import assembled

FAMILIES = ["arc_hunyuan_1b", "arc_qwen"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: Any, tmp_path_factory: Any) -> tuple[str, Path, Any, ArcVideoForConditionalGeneration]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, *assembled(request.param, folder)


def text(length: int, *, seed: int) -> Tensor:
    return torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed))


def clip(model: Any, *, frames: int, seed: int) -> Media:
    random, settings = torch.Generator().manual_seed(seed), model.settings
    side, audio = settings.vision.force_image_size, settings.audio
    return Media(
        key=f"clip-{seed}",
        frame_count=frames,
        seconds=frames,
        has_video=True,
        has_audio=True,
        pixels=torch.randint(0, 256, (frames, 3, side, side), generator=random).to(torch.uint8),
        mel=torch.randn(-(-frames // 2), audio.num_mel_bins, 2 * audio.max_source_positions, generator=random),
    )


def flat(pixels: Tensor, *, patch: int, merge: int) -> Tensor:
    """Return groups (G, 3, T, S, S) as transformers' processors hand patches on: (patches, channels * T * p * p)."""
    groups, channels, times, side, _ = pixels.shape
    cut = pixels.reshape(groups, channels, times, *(side // patch // merge, merge, patch) * 2)
    return cut.permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(-1, channels * times * patch * patch)


@torch.no_grad()
def test_without_sound_logits_are_those_of_transformers(family: Any) -> None:
    name, folder, theirs, ours = family
    special, layout = special_ids(load_tokenizer(folder / "base")), ours.settings.layout
    # One group: there transformers' rule for what follows a video and the released one agree.
    frames = layout.frames_per_group
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(frames, 3, layout.image_size, layout.image_size, generator=random)
    ids = torch.cat([text(5, seed=1), video_ids(layout.grid, frames=frames, special=special), text(7, seed=2)])
    inputs = replace_newlines(ids, special=special)[None]
    patch = ours.settings.vision.patch_size
    grid = torch.tensor([[1, layout.image_size // patch, layout.image_size // patch]])
    kinds = (inputs == special.image).long()
    if name == "arc_qwen":
        groups = grouped(pixels, per=2)
        want = theirs(
            input_ids=inputs, pixel_values_videos=flat(groups, patch=patch, merge=2), video_grid_thw=grid,
            second_per_grid_ts=torch.tensor([2.0]), mm_token_type_ids=2 * kinds,
        ).logits  # fmt: skip
        visual = ours.vision_model(groups).flatten(0, 1)
    else:
        want = theirs(
            input_ids=inputs, pixel_values=flat(pixels[:, :, None], patch=patch, merge=1), image_grid_thw=grid,
            mm_token_type_ids=kinds,
        ).logits  # fmt: skip
        visual = ours.vision_model(pixels).flatten(0, 1)
    embeds = ours.get_input_embeddings()(inputs)
    embeds[inputs == special.image] = visual
    got = ours(inputs_embeds=embeds, position_ids=xd_positions(ids, special)[None]).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert want.std() > 0.1


def test_the_chat_template_writes_what_training_renders(family: Any) -> None:
    _, folder, _, _ = family
    tokenizer = load_tokenizer(folder / "base")
    turns = (Turn(question="What?", answer="A circle."), Turn(question="When?", answer="At 00:00:01."))
    sample = Sample(key="a/0", task="qa", turns=turns, media_key=None)
    rendered = render_branch(sample, tokenizer=tokenizer, wording="arc")
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in (("user", turn.question), ("assistant", turn.answer))
    ]
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.encode(written, add_special_tokens=False) == rendered.ids.tolist()
    supervised = tokenizer.decode(rendered.ids[rendered.is_target].tolist())
    end = template_end(tokenizer)
    assert supervised == f"A circle.{end}At 00:00:01.{end}"


def test_what_ends_an_answer_ends_a_completion(family: Any) -> None:
    _, folder, _, _ = family
    tokenizer = load_tokenizer(folder / "base")
    special = special_ids(tokenizer)
    stop = stop_ids(tokenizer)
    assert stop == {special.end, special.eos}
    banned = banned_ids(tokenizer, stop=stop)
    assert {special.start, special.image, special.vid_open, special.newline} - {special.end} <= banned
    assert not stop & banned


def template_end(tokenizer: Any) -> str:
    return family_of(tokenizer).strings["end"]


@torch.no_grad()
def test_an_export_loads_back(family: Any, tmp_path: Path) -> None:
    _, _, _, ours = family
    save_model(ours, tmp_path)
    inputs = text(9, seed=3)[None]
    for loaded in (load_model(tmp_path), ArcVideoForConditionalGeneration.from_pretrained(tmp_path)):
        torch.testing.assert_close(loaded(inputs).logits, ours(inputs).logits, rtol=0, atol=0)


class Row:
    """A packed row under construction."""

    def __init__(self, special: SpecialIds) -> None:
        self.special = special
        self.ids: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.parents: list[int] = []

    def add(self, ids: Tensor, *, parent: int = -1) -> None:
        offset = 0 if parent < 0 else next_position(self.ids[parent], self.special)
        self.ids.append(ids)
        self.positions.append(xd_positions(ids, self.special, offset=offset))
        self.parents.append(parent)

    def inputs(self) -> dict[str, Any]:
        starts = [0, *torch.tensor([len(part) for part in self.ids]).cumsum(0).tolist()]
        return {
            "input_ids": replace_newlines(torch.cat(self.ids), special=self.special),
            "position_ids": torch.cat(self.positions, dim=1),
            "segments": Segments(starts=torch.tensor(starts), parents=torch.tensor(self.parents)),
        }


def run(model: Any, row: Row, media: tuple[Media, ...], *, columns: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits at the columns, and gradients of a sum over them that tells them apart."""
    model.zero_grad()
    logits = model(**row.inputs(), media=media).logits[columns]
    weights = torch.randn(logits.shape[-1], dtype=logits.dtype, generator=torch.Generator().manual_seed(5))
    (logits @ weights).sin().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_branches_of_a_packed_row_are_separate_conversations(family: Any) -> None:
    """Two clips, three branches in one row: logits and summed gradients of three rows of their own, in float64."""
    name, folder, _, ours = family
    model = ours.double()
    # transformers' norms of Qwen2.5-VL and its vision rope are float32 whatever the dtype: a few roundings of 6e-8 a
    # layer, which gradients of a sum of sines over a dozen tokens can raise a hundredfold.
    close: dict[str, float] = {"atol": 2e-5, "rtol": 1e-4} if name == "arc_qwen" else {}
    special, grid = special_ids(load_tokenizer(folder / "base")), model.settings.grid
    clips = [clip(model, frames=frames, seed=frames) for frames in (3, 2)]
    prefixes = [
        torch.cat([text(4, seed=10 + one.frame_count), video_ids(grid, frames=one.frame_count, special=special)])
        for one in clips
    ]
    branches = [(0, text(6, seed=20)), (0, text(3, seed=21)), (1, text(5, seed=22))]
    packed, place = Row(special), {}
    for number, prefix in enumerate(prefixes):
        place[number] = len(packed.ids)
        packed.add(prefix)
        for owner, branch in branches:
            if owner == number:
                packed.add(branch, parent=place[number])
    starts = packed.inputs()["segments"].starts.tolist()
    columns = torch.cat([torch.arange(starts[i], starts[i + 1]) for i, p in enumerate(packed.parents) if p >= 0])
    logits, gradients = run(model, packed, tuple(clips), columns=columns)
    found, summed = [], {}
    for owner, branch in branches:
        row = Row(special)
        row.add(torch.cat([prefixes[owner], branch]))
        own = torch.arange(len(prefixes[owner]), len(prefixes[owner]) + len(branch))
        part, grads = run(model, row, (clips[owner],), columns=own)
        found.append(part)
        for name, grad in grads.items():
            summed[name] = summed.get(name, 0) + grad
    ours.float()
    torch.testing.assert_close(logits, torch.cat(found), **close)
    assert gradients.keys() == summed.keys()
    assert {name.split(".")[0] for name in gradients} == {"vision_model", "speech_encoder", "mlp2", "language_model"}
    for name, grad in gradients.items():
        torch.testing.assert_close(grad, summed[name], msg=name, **close)


@torch.no_grad()
def test_cached_decoding_continues_a_prompt(family: Any) -> None:
    _, folder, _, ours = family
    special = special_ids(load_tokenizer(folder / "base"))
    ids = torch.cat([text(3, seed=1), video_ids(ours.settings.grid, frames=3, special=special), text(4, seed=2)])
    media = (clip(ours, frames=3, seed=0),)
    said = text(5, seed=9)
    whole = torch.cat([ids, said])
    expected = ours(
        replace_newlines(whole, special=special)[None], position_ids=xd_positions(whole, special)[None], media=media
    ).logits[0, -5:]
    output = ours(
        replace_newlines(ids, special=special)[None], position_ids=xd_positions(ids, special)[None], media=media,
        use_cache=True,
    )  # fmt: skip
    found = []
    for number, token in enumerate(said):
        at = torch.full((1, 4, 1), next_position(ids, special) + number)
        output = ours(token.view(1, 1), position_ids=at, past_key_values=output.past_key_values)
        found.append(output.logits[0, -1])
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-5, rtol=1e-4)
