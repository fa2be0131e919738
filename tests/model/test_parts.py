"""Base weights put together from a language model with a vision tower, and a Whisper encoder."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration
from whisper.model import ModelDimensions, Whisper

from arcvideo.model.disk.loading import load_model, save_model
from arcvideo.model.disk.parts import assemble, main
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer, load_tokenizer, save_tokenizer
from arcvideo.model.special import SPECIALS
from tests.model.small import SETTINGS, small_model

AUDIO = SETTINGS.audio


@pytest.fixture
def llm(tmp_path):
    """A directory without audio encoder and projector."""
    model, folder = small_model(), tmp_path / "llm"
    save_model(model, folder)
    path = folder / "model.safetensors"
    kept = {name: x for name, x in load_file(path).items() if not name.startswith(("speech_encoder.", "mlp2."))}
    save_file(kept, path, metadata={"format": "pt"})
    save_tokenizer(build_tiny_tokenizer(["red"], vocab_size=300), folder)
    return model, folder


@pytest.fixture
def openai(tmp_path):
    """An OpenAI file, in half precision as theirs are."""
    torch.manual_seed(1)
    dims = ModelDimensions(
        n_mels=AUDIO.num_mel_bins,
        n_audio_ctx=AUDIO.max_source_positions,
        n_audio_state=AUDIO.d_model,
        n_audio_head=AUDIO.encoder_attention_heads,
        n_audio_layer=AUDIO.encoder_layers,
        n_vocab=20, n_text_ctx=4, n_text_state=AUDIO.d_model, n_text_head=1, n_text_layer=1,
    )  # fmt: skip
    whisper = Whisper(dims).half()
    path = tmp_path / "whisper.pt"
    torch.save({"dims": vars(dims), "model_state_dict": whisper.state_dict()}, path)
    return whisper.float().eval(), path


@pytest.fixture
def hugging_face(tmp_path):
    torch.manual_seed(2)
    config = WhisperConfig(
        d_model=AUDIO.d_model,
        encoder_layers=AUDIO.encoder_layers,
        encoder_attention_heads=AUDIO.encoder_attention_heads,
        encoder_ffn_dim=AUDIO.encoder_ffn_dim,
        num_mel_bins=AUDIO.num_mel_bins,
        max_source_positions=AUDIO.max_source_positions,
        decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8, vocab_size=20,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    whisper = WhisperForConditionalGeneration(config).eval()
    whisper.save_pretrained(tmp_path / "whisper")
    return whisper, tmp_path / "whisper"


def mel() -> torch.Tensor:
    random = torch.Generator().manual_seed(3)
    return torch.randn(2, AUDIO.num_mel_bins, 2 * AUDIO.max_source_positions, generator=random)


@torch.no_grad()
def test_openai_and_hugging_face_encoders_hear_what_theirs_hear(llm, openai, hugging_face):
    sound = mel()
    heard = {
        openai[1]: openai[0].encoder(sound),
        hugging_face[1]: hugging_face[0].model.encoder(sound).last_hidden_state,
    }
    for path, rows in heard.items():
        model, _ = assemble(llm[1], path)
        torch.testing.assert_close(model.encode_audio(sound), rows, atol=2e-5, rtol=1e-4)


def test_everything_else_comes_from_the_directory_and_new_parts_are_reported(llm, hugging_face):
    source, folder = llm
    model, parts = assemble(folder, hugging_face[1], seed=5)
    taken = source.state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith(("language_model.", "vision_model.")):
            assert torch.equal(tensor, taken[name]), name
    assert {part.module: part.source for part in parts} == {
        "language_model": str(folder),
        "vision_model.vit": str(folder),
        "vision_model.perceive": str(folder),
        "speech_encoder": str(hugging_face[1]),
        "mlp2": "new",
    }
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_new_projectors_follow_the_seed(llm, hugging_face):
    drawn = [assemble(llm[1], hugging_face[1], seed=seed)[0].mlp2[1].weight for seed in (5, 5, 6)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_merger_may_be_new_too_but_not_half_of_it(llm, hugging_face):
    path = llm[1] / "model.safetensors"
    whole = load_file(path)
    save_file({n: x for n, x in whole.items() if ".perceive." not in n}, path, metadata={"format": "pt"})
    _, parts = assemble(llm[1], hugging_face[1])
    assert {part.module for part in parts if part.source == "new"} == {"vision_model.perceive", "mlp2"}
    save_file({n: x for n, x in whole.items() if not n.endswith("image_newline")}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"vision_model\.perceive\.image_newline is missing"):
        assemble(llm[1], hugging_face[1])


def test_names_may_lack_their_first_part(llm, hugging_face):
    path = llm[1] / "model.safetensors"
    bare = {
        name.removeprefix("language_model.").removeprefix("vision_model."): x for name, x in load_file(path).items()
    }
    save_file(bare, path, metadata={"format": "pt"})
    model, _ = assemble(llm[1], hugging_face[1])
    assert torch.equal(model.language_model.model.norm.weight, llm[0].language_model.model.norm.weight)


def test_the_command_writes_a_directory_that_loads(llm, openai, tmp_path, capsys):
    out = tmp_path / "base"
    assert main([f"--llm={llm[1]}", f"--whisper={openai[1]}", f"--out={out}"]) == 0
    loaded = load_model(out)
    assert torch.equal(loaded.speech_encoder.conv1.weight, openai[0].encoder.conv1.weight)
    assert SPECIALS["sep"] in load_tokenizer(out).get_vocab()
    assert [part["source"] for part in json.loads((out / "parts.json").read_text())][-1] == "new"
    assert "new" in capsys.readouterr().out


class Harmful:
    def __reduce__(self):
        return print, ("code from the file ran",)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b"rubbish"), "plain tensors"),
        (lambda path: torch.save({"model_state_dict": {}}, path), "OpenAI"),
        (lambda path: torch.save({"dims": Harmful()}, path), "plain tensors"),
    ],
)
def test_files_that_are_no_whisper_are_refused_in_one_line(llm, openai, tmp_path, capsys, spoil, word):
    spoil(openai[1])
    assert main([f"--llm={llm[1]}", f"--whisper={openai[1]}", f"--out={tmp_path / 'base'}"]) == 2
    printed = capsys.readouterr()
    assert word in printed.err
    assert "code from the file ran" not in printed.out


def test_odd_tensors_are_named(llm, hugging_face):
    path = llm[1] / "model.safetensors"
    tensors = load_file(path)
    tensors["language_model.model.odd"] = torch.zeros(1)
    tensors["language_model.model.norm.weight"] = torch.zeros(3)
    del tensors["vision_model.vit.layers.0.self_attn.qkv_proj.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="do not make up") as caught:
        assemble(llm[1], hugging_face[1])
    for part in ("model.odd is unexpected", "norm.weight is (3,)", "qkv_proj.bias is missing"):
        assert part in str(caught.value)
