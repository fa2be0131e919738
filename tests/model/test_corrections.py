"""Where the released code is wrong: the released rule by default, the right one as an option."""

from dataclasses import replace

import pytest
import torch

from arcvideo.model.arc_hunyuan.parts import audio_for_frames
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.positions import xd_positions
from arcvideo.model.settings import Corrections
from tests.model.small import SETTINGS, SPECIAL, Row, clip, prefix, text


def model_with(**corrections: bool) -> ArcVideoForConditionalGeneration:
    torch.manual_seed(0)
    settings = replace(SETTINGS, corrections=Corrections(**corrections))
    return ArcVideoForConditionalGeneration(ArcVideoConfig.from_settings(settings, special=SPECIAL)).double()


def addends(seconds: int, *, exact: bool) -> torch.Tensor:
    """Return (150, 112) second heard by each row of each frame, -1 where nothing is heard."""
    heard = torch.arange(seconds).repeat_interleave(50).double()[:, None] + 1
    rules = {"frames": min(seconds, 150), "tokens": 112, "max_num_frame": 150, "rows_per_second": 50}
    return audio_for_frames(heard, seconds=seconds, exact=exact, **rules)[..., 0] - 1


@pytest.mark.parametrize("seconds", [151, 165, 168, 210, 299, 300])
def test_exact_alignment_gives_every_frame_the_sound_of_its_own_span(seconds):
    exact = addends(seconds, exact=True)
    for frame, rows in enumerate(exact):
        heard = rows[rows >= 0]
        assert len(heard)
        assert frame * seconds / 150 - 1 <= heard.min()
        assert heard.max() <= (frame + 1) * seconds / 150
    assert torch.equal(exact[exact >= 0].unique(), torch.arange(seconds).double())


def test_the_released_rule_leaves_the_last_frames_without_sound():
    released, exact = addends(165, exact=False), addends(165, exact=True)
    assert (released[-2:] == -1).all()
    assert (exact[-2:] >= 0).any(dim=1).all()


@pytest.mark.parametrize("seconds", [1, 150, 300])
def test_both_rules_agree_where_the_released_one_is_right(seconds):
    assert torch.equal(addends(seconds, exact=True), addends(seconds, exact=False))


@pytest.mark.parametrize("corrected", [False, True])
def test_gradients_reach_the_merger_when_asked_for(corrected):
    model = model_with(merger_gradient=corrected)
    row = Row()
    row.add(torch.cat([prefix(frames=1), text(5, seed=0)]))
    inputs = row.inputs()
    labels = inputs["input_ids"].clone()
    model(**inputs, media=(clip(frames=1),), labels=labels).loss.backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    merger = {name for name, _ in model.named_parameters() if ".perceive." in name and "image_sep" not in name}
    assert (merger <= learned) == corrected
    assert not any(name.startswith(("vision_model.vit.", "speech_encoder.")) for name in learned)


def two_turns() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return ids (1, L) and positions (1, 4, L) of two documents, and where the second begins."""
    first = torch.cat([text(7, seed=1), torch.tensor([SPECIAL.end])])
    ids = torch.cat([first, text(6, seed=2)])
    return ids[None], xd_positions(ids, SPECIAL, restart_after_eod=True)[None], len(first)


@torch.no_grad()
@pytest.mark.parametrize("corrected", [False, True])
def test_a_second_turn_sees_the_first_unless_documents_are_separate(corrected):
    model = model_with(separate_documents=corrected).eval()
    ids, positions, begin = two_turns()
    both = model(ids, position_ids=positions).logits[0, begin:]
    alone = model(ids[:, begin:], position_ids=positions[:, :, begin:]).logits[0]
    assert torch.allclose(both, alone, atol=1e-10) == corrected


@torch.no_grad()
def test_separate_documents_work_in_padded_batches():
    model = model_with(separate_documents=True).eval()
    ids, positions, _ = two_turns()
    length = ids.shape[1]
    short = text(5, seed=3)
    padded = torch.full((2, length), SPECIAL.pad)
    mask, places = torch.zeros(2, length, dtype=torch.int64), torch.zeros(2, 4, length, dtype=torch.int64)
    padded[0], mask[0], places[0] = ids[0], 1, positions[0]
    padded[1, -5:], mask[1, -5:], places[1, :, -5:] = short, 1, torch.arange(5)
    together = model(padded, position_ids=places, attention_mask=mask).logits
    torch.testing.assert_close(together[0], model(ids, position_ids=positions).logits[0])
    torch.testing.assert_close(together[1, -5:], model(short[None]).logits[0])


def test_corrections_travel_with_the_configuration(tmp_path):
    model = model_with(exact_alignment=True)
    model.config.save_pretrained(tmp_path)
    assert ArcVideoConfig.from_pretrained(tmp_path).settings.corrections == Corrections(exact_alignment=True)
