from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml

from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import ModelSettings, check
from arcvideo.structured import filled
from tests.model.small import SETTINGS, clip, small_model

CONF = Path(__file__).parents[2] / "conf" / "model"


def read(name: str) -> ModelSettings:
    """Return the settings of a YAML; an unknown key fails."""
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return filled(ModelSettings, values)


@pytest.mark.parametrize("name", ["tiny", "arc_hunyuan_7b"])
def test_configurations_are_consistent_and_complete(name):
    check(read(name))
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    for item in fields(ModelSettings):
        assert item.name in values
        default = getattr(ModelSettings(), item.name)
        if is_dataclass(default):
            assert set(values[item.name]) == {inner.name for inner in fields(default)}


def test_the_7b_yaml_is_the_released_model():
    assert replace(read("arc_hunyuan_7b"), activation_checkpointing="none") == ModelSettings()
    assert ModelSettings().tokens_per_frame == 112


def test_the_tiny_model_has_the_layout_the_recipes_count_on():
    tiny = read("tiny")
    assert (tiny.tokens_per_frame, tiny.rows_per_second, tiny.audio.max_source_positions) == (8, 5, 400)


@pytest.mark.parametrize(
    ("part", "change", "key"),
    [
        ("text", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("text", {"attention_head_dim": 12}, "xdrope_section"),
        ("vision", {"force_image_size": 100}, "force_image_size"),
        ("vision", {"num_attention_heads": 3}, "num_attention_heads"),
        ("audio", {"encoder_attention_heads": 3}, "encoder_attention_heads"),
        (None, {"audio_pooling": 3}, "audio_pooling"),
        (None, {"audio_pooling": 1}, "audio rows a second"),
        (None, {"max_num_frame": 0}, "max_num_frame"),
    ],
)
def test_sizes_that_do_not_fit_name_the_key(part, change, key):
    with pytest.raises(ValueError, match=key):
        replace(SETTINGS, **({part: replace(getattr(SETTINGS, part), **change)} if part else change))


def test_fresh_media_tokens_are_as_loud_as_text():
    torch.manual_seed(0)
    model = ArcVideoForConditionalGeneration(ArcVideoConfig.from_settings(read("tiny"), vocab_size=900))
    text = model.get_input_embeddings().weight.square().mean().sqrt()
    visual = model.vision_model(torch.randn(2, 3, 128, 128)).square().mean().sqrt()
    audio = model.project_audio(model.encode_audio(torch.randn(1, 80, 800))).square().mean().sqrt()
    assert 0.8 < visual / text < 1.25
    assert 0.6 < audio / text < 1.6


def test_fresh_weights_follow_the_seed():
    one, two = small_model(seed=3), small_model(seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    media = clip()
    torch.testing.assert_close(one.embed_media([media]), two.embed_media([media]))


def test_transformers_checkpointing_switch_works():
    model = small_model()
    model.activation_checkpointing_enable()
    assert model.activation_checkpointing == "full"
