"""The forms in which other libraries call `forward`: each is answered as expected or refused, never misread."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.utils.generic import find_labels

from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.plans import batch_plan
from tests.model.small import SETTINGS, Row, clip, prefix, small_model, text


@pytest.fixture(scope="module")
def model():
    return small_model(dtype=torch.float64).eval()


def padded(rows: int) -> dict[str, torch.Tensor]:
    """Return rows of text, each padded on the left by its own number."""
    ids = torch.stack([text(12, seed=row) for row in range(rows)])
    mask = torch.stack([(torch.arange(12) >= row).long() for row in range(rows)])
    return {"input_ids": ids, "attention_mask": mask}


def own_index(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 4, 5])
def test_positions_without_axes_are_the_same_on_every_axis(model, rows):
    inputs = padded(rows)
    positions = own_index(inputs["attention_mask"]) + 3
    expected = model(**inputs, position_ids=positions.unsqueeze(1).expand(-1, 4, -1)).logits
    assert torch.equal(model(**inputs, position_ids=positions).logits, expected)


@torch.no_grad()
def test_a_batch_may_share_one_row_of_positions(model):
    ids = padded(4)["input_ids"]
    index = torch.arange(12)
    expected = model(ids).logits
    for shared in (index[None], index.expand(1, 4, 12)):
        assert torch.equal(model(ids, position_ids=shared).logits, expected)
    assert torch.equal(model(ids[0], position_ids=index).logits, model(ids[0]).logits)


@pytest.mark.parametrize("shape", [(12,), (3, 12), (4, 11), (4, 3, 12), (3, 4, 12), (4, 4, 11)])
def test_positions_of_another_shape_are_refused(model, shape):
    with pytest.raises(ValueError, match="position_ids must be"):
        model(padded(4)["input_ids"], position_ids=torch.zeros(shape, dtype=torch.int64))


@torch.no_grad()
def test_embeddings_may_stand_in_for_ids(model):
    inputs = padded(3)
    expected = model(**inputs).logits
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits, expected)
    both = pytest.raises(ValueError, match="either input_ids or inputs_embeds")
    with both:
        model(**inputs, inputs_embeds=embeds)
    with both:
        model()
    with pytest.raises(ValueError, match="fused tokens already"):
        model(inputs_embeds=embeds, media=(clip(),))


def test_a_mask_of_four_axes_is_refused(model):
    with pytest.raises(ValueError, match="attention_mask must be"):
        model(padded(2)["input_ids"], attention_mask=torch.ones(2, 1, 12, 12))


def test_labels_are_found_by_trainers():
    assert find_labels(ArcVideoForConditionalGeneration) == ["labels"]


def test_the_loss_of_a_step_is_divided_once(model):
    inputs = padded(4)
    labels = inputs["input_ids"].clone()
    labels[:, :5] = -100
    labels[0, :9] = -100
    whole = model(**inputs, labels=labels).loss
    count = (labels[:, 1:] != -100).sum()
    halves = [{name: tensor[part] for name, tensor in inputs.items()} for part in (slice(2), slice(2, 4))]
    parts = [
        model(**half, labels=labels[part], num_items_in_batch=count, supervised_only=few).loss
        for half, part, few in zip(halves, (slice(2), slice(2, 4)), (False, True), strict=True)
    ]
    torch.testing.assert_close(sum(parts), whole)


@torch.no_grad()
def test_hidden_states_are_embeddings_layers_and_the_last_norm(model):
    inputs = padded(2)
    output = model(**inputs, output_hidden_states=True, use_cache=False)
    assert len(output.hidden_states) == SETTINGS.text.num_hidden_layers + 1
    assert torch.equal(output.hidden_states[0], model.get_input_embeddings()(inputs["input_ids"]))
    assert torch.equal(model.language_model.lm_head(output.hidden_states[-1]), output.logits)
    assert model(**inputs).hidden_states is None


@torch.no_grad()
def test_attention_weights_are_those_that_made_the_output(model):
    inputs = padded(3)
    kept = inputs["attention_mask"].bool()
    output = model(**inputs, output_attentions=True)
    torch.testing.assert_close(output.logits[kept], model(**inputs).logits[kept])
    for weights in output.attentions:
        assert weights.shape == (3, 4, 12, 12)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 12, dtype=torch.float64))
        assert (weights.triu(1) == 0).all()
        assert (weights[2, :, 5, :2] == 0).all(), "padding is not seen"
    with pytest.raises(ValueError, match="output_attentions needs a batch"):
        model(inputs["input_ids"][0], output_attentions=True)


@torch.no_grad()
def test_a_tuple_is_returned_when_asked_for(model):
    loss, logits, *_ = model(**padded(2), labels=padded(2)["input_ids"], return_dict=False)
    assert loss.dim() == 0
    assert logits.shape == (2, 12, 64)


@pytest.mark.parametrize("media", [False, True])
def test_peft_wraps_a_causal_language_model(media):
    torch.manual_seed(0)
    adapted = get_peft_model(small_model(), LoraConfig(r=2, target_modules=["qkv_proj"], task_type="CAUSAL_LM"))
    inputs = padded(2)
    if media:
        row = Row()
        row.add(torch.cat([prefix(frames=2), text(4, seed=0)]))
        made = row.inputs()
        inputs = {"input_ids": made["input_ids"][None], "position_ids": made["position_ids"][None], "media": (clip(),)}
    labels = inputs["input_ids"].clone()
    adapted(**inputs, labels=labels).loss.backward()
    learnt = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert any("language_model" in name and "lora_B" in name for name in learnt)


def test_the_vocabulary_can_grow(tmp_path):
    model = small_model()
    ids = text(6, seed=0)[None]
    before = model(ids).logits
    model.resize_token_embeddings(80)
    assert (model.config.vocab_size, model.settings.text.vocab_size) == (80, 80)
    after = model(ids).logits
    assert after.shape[-1] == 80
    torch.testing.assert_close(after[..., :64], before)
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = ArcVideoForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, after)


def test_an_untied_head_is_refused():
    config = small_model().config
    config.tie_word_embeddings = False
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        ArcVideoForConditionalGeneration(config)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_static_cache_gives_equal_answers(model, rows, implementation):
    inputs = padded(rows)
    model.set_attn_implementation(implementation)
    said = [
        model.generate(**inputs, max_new_tokens=6, eos_token_id=None, cache_implementation=kind)
        for kind in (None, "static")
    ]
    model.set_attn_implementation("sdpa")
    assert said[0].tolist() == said[1].tolist()


@torch.no_grad()
def test_weights_may_be_kept_on_the_disk(tmp_path):
    from accelerate import disk_offload

    model = small_model().eval()
    row = Row()
    row.add(torch.cat([prefix(frames=2), text(4, seed=0)]))
    made = row.inputs()
    inputs = {"input_ids": made["input_ids"][None], "position_ids": made["position_ids"][None], "media": (clip(),)}
    expected = model(**inputs).logits
    disk_offload(model, offload_dir=str(tmp_path), execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    torch.testing.assert_close(model(**inputs).logits, expected)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_towers_that_learn_are_recomputed_too(recompute):
    found = {}
    for mode in ("none", recompute):
        model = small_model(dtype=torch.float64)
        model.activation_checkpointing = mode
        row = Row()
        row.add(torch.cat([prefix(frames=2), text(4, seed=0)]))
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            tower = model.encode_vision(
                torch.randn(2, 3, 128, 128, dtype=torch.float64, generator=torch.manual_seed(0))
            )
            heard = model.encode_audio(torch.randn(1, 8, 200, dtype=torch.float64, generator=torch.manual_seed(1)))
        (tower.square().sum() + heard.square().sum()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[mode] = (saved, gradients)
    assert found["none"][1].keys() == found[recompute][1].keys()
    for name, gradient in found["none"][1].items():
        torch.testing.assert_close(found[recompute][1][name], gradient, rtol=0, atol=0, msg=name)
    assert found[recompute][0] < found["none"][0]


def test_a_batch_is_planned_the_same_for_auto_and_sdpa():
    given = {"queries": 5, "keys": 9, "attention_mask": None, "dtype": torch.float32, "device": torch.device("cpu")}
    plans = [batch_plan(**given, implementation=name) for name in ("sdpa", "auto")]
    assert torch.equal(plans[0].mask.whole, plans[1].mask.whole)
