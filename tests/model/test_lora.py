"""Adapters: a fresh one changes nothing, a trained one merges exactly, PEFT reads what is saved, misspelt targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arcvideo.model.disk.loading import load_model, save_model
from arcvideo.model.disk.lora import Adapters, add_adapters, disable_adapters, whole_modules
from arcvideo.model.families.table import FAMILIES
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import TOWER_LAYERS, LoraSettings, lora_problems
from arcvideo.runner.trainable import PREFIXES
from tests.model.small import SETTINGS, Row, clip, prefix, small_model

LORA = LoraSettings(rank=4, alpha=8.0)
LLM = ("language_model.",)


def logits(model: torch.nn.Module) -> Tensor:
    ids = torch.arange(12) % SETTINGS.text.vocab_size
    with torch.no_grad():
        return model(input_ids=ids.unsqueeze(0)).logits


def adapted(seed: int = 0) -> tuple[ArcVideoForConditionalGeneration, Adapters]:
    """A model with adapters that have learnt something."""
    model = small_model(seed=1).eval()
    adapters = add_adapters(model, settings=LORA, prefixes=LLM, seed=seed)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, adapters


def test_the_table_of_linear_layers_is_that_of_the_model() -> None:
    model = small_model()
    found = {
        module: {
            name.rpartition(".")[2]
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear) and name.startswith(PREFIXES[module])
        }
        for module in PREFIXES
    }
    known = TOWER_LAYERS | {"llm": (*FAMILIES["arc_hunyuan"].adapter_targets, "lm_head")}
    assert found == {module: set(names) for module, names in known.items()}


def test_a_fresh_adapter_changes_no_bit() -> None:
    model = small_model(seed=1).eval()
    before = logits(model)
    add_adapters(model, settings=LORA, prefixes=LLM)
    assert torch.equal(logits(model), before)


def test_adapters_start_from_their_seed_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    models = []
    for seed in (1, 1, 2):
        model = small_model()
        torch.manual_seed(5)
        add_adapters(model, settings=LORA, prefixes=LLM, seed=seed)
        assert torch.equal(torch.rand(3), expected)
        models.append([value for name, value in model.named_parameters() if ".lora_A." in name])
    assert all(torch.equal(one, two) for one, two in zip(models[0], models[1], strict=True))
    assert not torch.equal(models[0][0], models[2][0])


def test_merged_weights_give_the_logits_of_the_adapters_under_released_names(tmp_path: Path) -> None:
    model, adapters = adapted()
    before = logits(model)
    plain = logits(small_model(seed=1).eval())
    assert float((before - plain).abs().max()) > 1e-2
    merged = adapters.merge()
    assert merged is model
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in small_model().named_parameters()}
    save_model(model, tmp_path)
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


def test_peft_reads_the_saved_adapter_onto_the_parent(tmp_path: Path) -> None:
    from peft import PeftModel

    save_model(small_model(seed=1), tmp_path / "parent")
    model, adapters = adapted()
    before = logits(model)
    adapters.save(tmp_path / "adapter")
    adapters.save(tmp_path / "adapter")  # a stage that is done again writes it again
    loaded = PeftModel.from_pretrained(load_model(tmp_path / "parent"), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(loaded), before, rtol=1e-6, atol=1e-6)
    assert not list(tmp_path.glob(".adapter*"))


def test_disabled_adapters_give_the_parents_logits() -> None:
    model, _ = adapted()
    disable_adapters(model)
    assert torch.equal(logits(model), logits(small_model(seed=1).eval()))


def test_only_the_layers_named_are_adapted() -> None:
    model = small_model()
    add_adapters(model, settings=replace(LORA, targets=["qkv_proj"]), prefixes=LLM)
    layers = {name.rsplit(".lora_", 1)[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert layers == {f"language_model.model.layers.{layer}.self_attn.qkv_proj" for layer in range(2)}


@pytest.mark.parametrize("target", ["qvk_proj", "lm_head", "embed_tokens"])
def test_a_target_that_is_no_linear_layer_there_is_one_line(target: str) -> None:
    with pytest.raises(ValueError, match=f"lora.targets has '{target}', which is no linear layer") as caught:
        add_adapters(small_model(), settings=replace(LORA, targets=["qkv_proj", target]), prefixes=LLM)
    assert "\n" not in str(caught.value)
    assert "gate_and_up_proj" in str(caught.value)


def test_a_module_without_any_target_is_named() -> None:
    with pytest.raises(ValueError, match=r"no linear layer in vision_model\.vit\."):
        add_adapters(
            small_model(), settings=replace(LORA, targets=["gate_and_up_proj"]), prefixes=(*LLM, "vision_model.vit.")
        )


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"rank": 0}, "lora.rank=0"),
        ({"alpha": 0.0}, "lora.alpha"),
        ({"dropout": 1.0}, "lora.dropout"),
        ({"modules": ["vit"]}, "lora.modules has 'vit'"),
    ],
)
def test_settings_that_cannot_run_name_their_key(change: dict[str, object], key: str) -> None:
    lora = replace(LORA, **change)  # type: ignore[arg-type]
    problems = lora_problems(lora, train=["llm"], objective="next_token", answers=True)
    assert any(key in problem for problem in problems)


def test_sampling_stages_refuse_dropout() -> None:
    (dropout,) = lora_problems(replace(LORA, dropout=0.1), train=["llm"], objective="grpo", answers=False)
    assert "lora.dropout=0.1 must be 0" in dropout
    assert lora_problems(None, train=["llm"], objective="grpo", answers=False) == []


def test_a_saved_adapter_holds_modules_that_were_trained_whole(tmp_path: Path) -> None:
    from peft import PeftModel

    save_model(small_model(seed=1), tmp_path / "parent")
    model, adapters = adapted()
    whole = ("vision_model.perceive", "mlp2")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(whole):
                parameter.requires_grad_(True)
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapters.save(tmp_path / "adapter")
    row = Row()
    row.add(prefix(frames=2))
    inputs = row.inputs() | {"media": (clip(),)}
    with torch.no_grad():
        expected = model(**inputs).logits
        parent = load_model(tmp_path / "parent")
        assert not torch.allclose(parent(**inputs).logits, expected, atol=1e-2)
        found = PeftModel.from_pretrained(parent, str(tmp_path / "adapter")).eval()(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "`mlp2`, `vision_model.perceive`" in card
    assert "More Information Needed" not in card


def test_half_a_module_cannot_be_saved_with_an_adapter() -> None:
    model = small_model()
    model.requires_grad_(False)
    model.vision_model.perceive.image_newline.requires_grad_(True)
    with pytest.raises(ValueError, match=r"vision_model.perceive: image_newline learn"):
        whole_modules(model)
