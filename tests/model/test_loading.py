import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.loading import load_model, save_model
from arcvideo.model.disk.weights import EMBEDDING, HEAD
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import ModelSettings
from tests.model.small import SETTINGS, SPECIAL, small_model, text


@pytest.fixture
def saved(tmp_path):
    model = small_model()
    save_model(model, tmp_path)
    return model, tmp_path


def rewrite(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def same(a, b) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_saved_model_loads_again_bit_for_bit(saved):
    model, directory = saved
    loaded = load_model(directory)
    assert same(model, loaded)
    assert loaded.settings == model.settings == SETTINGS
    assert loaded.config.image_token_id == SPECIAL.image
    ids = text(5, seed=0)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_what_a_killed_export_left_is_no_part_of_the_next_one(tmp_path):
    (tmp_path / ".tmpDjI2ca").write_bytes(bytes(100))
    save_model(small_model(), tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_transformers_own_loader_reads_it_too(saved):
    model, directory = saved
    assert same(model, ArcVideoForConditionalGeneration.from_pretrained(directory))


def released_directory(folder: Path) -> ArcVideoForConditionalGeneration:
    """Write what the released directory should look like: several shards, an index, a head, a buffer, more keys."""
    model = small_model()
    folder.mkdir()
    model.config.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    del described["corrections"]
    described["text_config"] |= {"num_media_embeds": 257, "use_qk_norm": True, "max_position_embeddings": 1024}
    (folder / "config.json").write_text(json.dumps(described))
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    tensors[HEAD] = tensors[EMBEDDING].clone()
    tensors["vision_model.vit.embeddings.position_ids"] = torch.arange(65)[None]
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


@pytest.mark.parametrize("load", [load_model, ArcVideoForConditionalGeneration.from_pretrained])
def test_a_directory_with_the_released_names_and_layout_loads(tmp_path, load):
    model = released_directory(tmp_path / "released")
    loaded = load(tmp_path / "released")
    assert same(model, loaded)
    assert sorted(loaded.generation_config.eos_token_id) == [SPECIAL.end, SPECIAL.eos]


@pytest.mark.parametrize("load", [load_model, ArcVideoForConditionalGeneration.from_pretrained])
def test_odd_keys_of_a_released_directory_are_all_named(tmp_path, load):
    folder = tmp_path / "released"
    released_directory(folder)
    path = folder / "model-00002-of-00003.safetensors"
    tensors = load_file(path)
    lost, bent = sorted(name for name in tensors if name.startswith("vision_model.vit.layers"))[:2]
    del tensors[lost]
    tensors[bent] = torch.zeros(3)
    tensors["language_model.model.layers.0.odd"] = torch.zeros(1)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="do not fit") as caught:
        load(folder)
    for part in (f"{lost} is missing", f"{bent} is (3,)", "layers.0.odd is unexpected"):
        assert part in str(caught.value)


def test_what_is_saved_has_the_released_names(saved):
    _, directory = saved
    names = set(load_file(directory / "model.safetensors"))
    for name in (
        "vision_model.vit.layers.0.self_attn.qkv_proj.bias",
        "vision_model.perceive.proj.2.weight",
        "vision_model.perceive.image_sep",
        "speech_encoder.layers.0.self_attn.k_proj.weight",
        "mlp2.3.bias",
        "language_model.model.layers.0.self_attn.query_layernorm.weight",
        "language_model.model.layers.0.mlp.gate_and_up_proj.weight",
        "language_model.model.norm.weight",
    ):
        assert name in names
    assert {name.split(".")[0] for name in names} == {"vision_model", "speech_encoder", "mlp2", "language_model"}


def test_transformers_own_loader_is_strict(saved):
    _, directory = saved
    rewrite(directory, lambda tensors: tensors.pop("mlp2.3.bias"))
    with pytest.raises(ValueError, match=r"mlp2\.3\.bias"):
        ArcVideoForConditionalGeneration.from_pretrained(directory)


def test_the_head_is_tied_and_not_stored(saved):
    _, directory = saved
    assert HEAD not in load_file(directory / "model.safetensors")
    loaded = load_model(directory)
    assert loaded.language_model.lm_head.weight is loaded.language_model.model.embed_tokens.weight
    assert HEAD not in dict(loaded.named_parameters())


def test_released_extras_are_tolerated(saved):
    model, directory = saved

    def extras(tensors):
        tensors[HEAD] = tensors[EMBEDDING].clone()
        tensors["vision_model.vit.embeddings.position_ids"] = torch.arange(65)[None]

    rewrite(directory, extras)
    assert same(model, load_model(directory))


def test_a_head_that_is_not_tied_is_refused(saved):
    _, directory = saved
    rewrite(directory, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] + 1}))
    with pytest.raises(ValueError, match="ties them"):
        load_model(directory)


def test_every_odd_key_is_named(saved):
    _, directory = saved

    def spoil(tensors):
        tensors.pop("mlp2.3.bias")
        tensors.pop("speech_encoder.conv1.bias")
        tensors["language_model.model.layers.9.odd"] = torch.zeros(1)
        tensors["mlp2.1.bias"] = torch.zeros(3)

    rewrite(directory, spoil)
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_model(directory)
    for part in (
        "mlp2.3.bias is missing",
        "speech_encoder.conv1.bias is missing",
        "language_model.model.layers.9.odd is unexpected",
        "mlp2.1.bias is (3,), the configuration wants (32,)",
    ):
        assert part in str(caught.value)


def test_sharded_weights_load_and_an_absent_shard_is_named(saved):
    model, directory = saved
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="20KB")
    shards = sorted(directory.glob("*.safetensors"))
    assert len(shards) > 1
    assert same(model, load_model(directory))
    shards[0].unlink()
    with pytest.raises(ValueError, match=shards[0].name):
        load_model(directory)


def test_a_directory_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks weights"):
        load_model(tmp_path)


def test_gathered_state_is_what_gets_saved(tmp_path):
    model = small_model()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path, state=state)
    assert torch.equal(load_model(tmp_path).mlp2[1].weight, model.mlp2[1].weight + 1)


def test_dtype_is_a_choice(saved):
    _, directory = saved
    model = load_model(directory, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(text(5, seed=0)[None]).logits.isfinite().all()


def test_released_shapes_and_parameter_counts():
    with torch.device("meta"):
        model = ArcVideoForConditionalGeneration(ArcVideoConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["vision_model.vit.embeddings.position_embedding.weight"] == (16385, 1152)
    assert shapes["vision_model.perceive.proj.0.weight"] == (2304, 1152, 2, 2)
    assert shapes["speech_encoder.embed_positions.weight"] == (1500, 1280)
    assert shapes["language_model.model.layers.31.self_attn.qkv_proj.weight"] == (6144, 4096)
    assert shapes["language_model.model.layers.31.mlp.gate_and_up_proj.weight"] == (28672, 4096)
    counts = {
        "language_model": 7_504_932_864,
        "vision_model.vit": 431_228_016,
        "vision_model.perceive": 40_141_184,
        "speech_encoder": 636_968_960,
        "mlp2": 22_030_848,
    }
    for name, count in counts.items():
        assert sum(p.numel() for p in model.get_submodule(name).parameters()) == count, name


def test_config_json_may_lack_keys_and_have_others(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "arc_hunyuan_video", "text_config": {"num_media_embeds": 257, "hidden_act": "silu"}})
    )
    assert ArcVideoConfig.from_pretrained(tmp_path).settings == ModelSettings()


def test_rope_alpha_survives_json(tmp_path):
    config = ArcVideoConfig.from_settings(SETTINGS, special=SPECIAL)
    config.save_pretrained(tmp_path)
    assert ArcVideoConfig.from_pretrained(tmp_path).settings.text.rope_alpha == 1.0


def test_vocabulary_is_taken_from_the_tokenizer_when_open():
    open_ended = replace(SETTINGS, text=replace(SETTINGS.text, vocab_size=0))
    assert ArcVideoConfig.from_settings(open_ended, vocab_size=65).settings.text.vocab_size == 128
    with pytest.raises(ValueError, match="no tokenizer"):
        ArcVideoConfig.from_settings(open_ended)
    with pytest.raises(ValueError, match=r"65 ids but model\.text\.vocab_size is 64"):
        ArcVideoConfig.from_settings(SETTINGS, vocab_size=65)


def test_settings_positions_and_ids_import_without_transformers():
    code = (
        "import sys, arcvideo.model.settings, arcvideo.model.special; assert 'torch' not in sys.modules; "
        "import arcvideo.model.positions; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
