import pytest
import torch
from transformers import DynamicCache

from tests.model.small import SPECIAL, Row, clip, prefix, small_model, text


@pytest.fixture
def model():
    return small_model(dtype=torch.float64).eval()


def test_prefill_and_cached_steps_equal_the_full_forward(model):
    row = Row()
    row.add(torch.cat([prefix(frames=2), text(12, seed=0)]))
    inputs = row.inputs()
    ids, positions, cut = inputs["input_ids"][None], inputs["position_ids"][None], 30
    media = (clip(frames=2),)
    with torch.no_grad():
        full = model(ids, position_ids=positions, media=media).logits
        cache = DynamicCache()
        parts = [model(ids[:, :cut], position_ids=positions[..., :cut], media=media, past_key_values=cache).logits]
        for at in range(cut, ids.shape[1]):
            parts.append(model(ids[:, at : at + 1], past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=1e-10)


def test_several_cached_tokens_at_once_equal_the_full_forward(model):
    ids = text(20, seed=1)[None]
    with torch.no_grad():
        full = model(ids).logits
        first = model(ids[:, :8], use_cache=True)
        second = model(ids[:, 8:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), full, rtol=0, atol=1e-10)


def test_left_padding_changes_nothing(model):
    short, long = text(6, seed=2), text(10, seed=3)
    ids = torch.stack([torch.cat([torch.full((4,), SPECIAL.pad), short]), long])
    mask = (ids != SPECIAL.pad).long()
    with torch.no_grad():
        prefill = model(ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
        step = model(ids[:, -1:], attention_mask=mask, past_key_values=prefill.past_key_values)
        torch.testing.assert_close(step.logits[0, -1], model(short[None]).logits[0, -1], rtol=0, atol=1e-10)
        torch.testing.assert_close(step.logits[1, -1], model(long[None]).logits[0, -1], rtol=0, atol=1e-10)


def test_only_the_last_logits_on_request(model):
    ids = text(9, seed=4)[None]
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, model(ids).logits[:, -1:])


def test_labels_give_the_mean_shifted_loss(model):
    ids = text(9, seed=5)[None]
    labels = ids.clone()
    labels[:, :4] = -100
    output = model(ids, labels=labels)
    logprobs = output.logits[0, 3:8].log_softmax(-1)
    expected = -logprobs.gather(1, ids[0, 4:, None]).mean()
    torch.testing.assert_close(output.loss, expected)


def test_forms_are_not_mixed(model):
    ids = text(4, seed=6)
    with pytest.raises(ValueError, match="packed row"):
        model(ids[None], target_positions=torch.tensor([1]))
    with pytest.raises(ValueError, match="batch"):
        model(ids, use_cache=True)
    with pytest.raises(TypeError):
        model(ids, audio_features=None)
