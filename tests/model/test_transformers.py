"""What people expect of a transformers model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from arcvideo.model.arc_hunyuan.language import rope_tables
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.loading import empty_model, save_model
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.plans import batch_plan
from tests.model.small import SETTINGS, Row, clip, prefix, small_model, text


def batch() -> dict[str, torch.Tensor]:
    """Two rows of text, the second padded on the left."""
    ids = torch.stack([text(12, seed=0), text(12, seed=1)])
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    return {"input_ids": ids, "attention_mask": mask}


def gradients(model: ArcVideoForConditionalGeneration) -> dict[str, torch.Tensor]:
    row = Row()
    row.add(torch.cat([prefix(frames=2), text(6, seed=0)]))
    inputs = row.inputs()
    ids, labels = inputs["input_ids"][None], inputs["input_ids"][None].clone()
    labels[:, :-6] = -100
    model.train()
    model.zero_grad()
    model(ids, position_ids=inputs["position_ids"][None], media=(clip(frames=2),), labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText])
def test_auto_classes_find_the_model(tmp_path, auto):
    save_model(small_model(), tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), ArcVideoConfig)
    assert isinstance(auto.from_pretrained(tmp_path), ArcVideoForConditionalGeneration)


def test_the_released_model_is_built_without_memory_and_has_its_parameters():
    model = empty_model(ArcVideoConfig())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_635_301_872


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_attention_implementations_agree(implementation):
    model, inputs = small_model(dtype=torch.float64).eval(), batch()
    expected = model(**inputs).logits
    model.set_attn_implementation(implementation)
    found = model(**inputs).logits
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[kept], expected[kept])


def test_an_implementation_is_chosen_when_loading(tmp_path):
    save_model(small_model(), tmp_path)
    model = ArcVideoForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def test_gradient_checkpointing_changes_nothing_but_memory():
    model = small_model(dtype=torch.float64)
    plain = gradients(model)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    recomputed = gradients(model)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_lora_of_peft_trains_the_decoder_only():
    torch.manual_seed(0)
    model = small_model()
    target = r"language_model\..*\.(qkv_proj|o_proj|gate_and_up_proj|down_proj)"
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=target))
    learning = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert learning
    assert all("language_model.model.layers" in name and "lora_" in name for name in learning)
    before = adapted(**batch()).logits
    adapted(**batch(), labels=batch()["input_ids"]).loss.backward()
    torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0).step()
    assert not torch.equal(adapted(**batch()).logits, before)
    out = adapted.eval().generate(batch()["input_ids"][:1], max_new_tokens=2, eos_token_id=None)
    assert out.shape == (1, 14)


@torch.no_grad()
def test_a_decoder_layer_compiles_whole():
    model = small_model().eval()
    layer = model.language_model.model.layers[0]
    x = torch.randn(2, 12, SETTINGS.text.hidden_size)
    positions = torch.arange(12).expand(2, 4, 12)
    rope = rope_tables(positions, settings=SETTINGS.text, dtype=x.dtype)
    plan = batch_plan(queries=12, keys=12, attention_mask=None, dtype=x.dtype, device=x.device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, rope, plan), layer(x, rope, plan))


@torch.no_grad()
def test_logits_only_at_labels_give_the_same_loss():
    model, inputs = small_model(dtype=torch.float64).eval(), batch()
    labels = inputs["input_ids"].clone()
    labels[:, :8] = -100
    full, few = model(**inputs, labels=labels), model(**inputs, labels=labels, supervised_only=True)
    torch.testing.assert_close(few.loss, full.loss)
    assert few.logits.shape == (8, SETTINGS.text.vocab_size)


def test_logits_only_at_labels_give_the_same_gradients():
    model = small_model(dtype=torch.float64)
    inputs = batch()
    labels = inputs["input_ids"].clone()
    labels[:, :8] = -100
    found = []
    for supervised_only in (False, True):
        model.zero_grad()
        model(**inputs, labels=labels, supervised_only=supervised_only).loss.backward()
        found.append(model.language_model.model.embed_tokens.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.gpu
@torch.no_grad()
def test_flex_attention_agrees_with_sdpa_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = small_model().eval().to("cuda")
    inputs = {name: tensor.to("cuda") for name, tensor in batch().items()}
    expected = model(**inputs).logits
    model.set_attn_implementation("flex_attention")
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[kept], expected[kept], atol=1e-4, rtol=1e-4)


def test_an_unknown_implementation_changes_nothing():
    model = small_model()
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="foo"):
        model.set_attn_implementation("foo")
    parts = [getattr(model.config, name)._attn_implementation for name in model.config.sub_configs]
    assert {model.config._attn_implementation, *parts} == {"eager"}
