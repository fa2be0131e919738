"""Tiny base directories of the families, as transformers itself writes them, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    HunYuanVLConfig,
    HunYuanVLForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    WhisperConfig,
    WhisperModel,
)

from arcvideo.model.disk.parts import assemble
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer, save_tokenizer
from arcvideo.model.modeling import ArcVideoForConditionalGeneration

CORPUS = ["What happens at 00:00:01? A red circle moves.", "one two three"]


def loud(model: torch.nn.Module) -> Any:
    """Give every parameter a value that shows: norms not all one, biases not zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "embed" not in name:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return model.eval()


def whisper(out: Path) -> Path:
    config = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=24, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=8, num_mel_bins=80, max_source_positions=100, vocab_size=64,
        decoder_start_token_id=1, pad_token_id=1, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    loud(WhisperModel(config)).save_pretrained(out)
    return out


def hunyuan_ocr(out: Path) -> HunYuanVLForConditionalGeneration:
    """Write a HunyuanOCR directory and return its model."""
    tokenizer = build_tiny_tokenizer(CORPUS, vocab_size=512, family="arc_hunyuan_1b")
    config = HunYuanVLConfig(
        text_config={
            "vocab_size": 512, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "rope_parameters": {
                "rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0, "rope_theta": 10000.0,
                "mrope_section": [2, 2, 2, 2],
            },
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_image_size": 128, "patch_size": 16,
        },
        image_token_id=tokenizer.get_vocab()["<\uff5chy_place\u2581holder\u2581no\u2581102\uff5c>"],
    )  # fmt: skip
    model = loud(HunYuanVLForConditionalGeneration(config))
    model.save_pretrained(out)
    save_tokenizer(tokenizer, out)
    return model


def qwen(out: Path, *, tied: bool = False) -> Qwen2_5_VLForConditionalGeneration:
    """Write a Qwen2.5-VL directory and return its model."""
    tokenizer = build_tiny_tokenizer(CORPUS, vocab_size=512, family="arc_qwen")
    known = tokenizer.get_vocab()
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
        image_token_id=known["<|image_pad|>"], video_token_id=known["<|video_pad|>"],
        vision_start_token_id=known["<|vision_start|>"], vision_end_token_id=known["<|vision_end|>"],
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = loud(Qwen2_5_VLForConditionalGeneration(config))
    model.save_pretrained(out)
    save_tokenizer(tokenizer, out)
    return model


SIZES: dict[str, dict[str, Any]] = {
    "arc_hunyuan_1b": {
        "audio_pooling": 10, "max_num_frame": 6, "vision_config": {"force_image_size": 96, "anyres_pooling_size": 1},
    },
    "arc_qwen": {"audio_pooling": 10, "max_num_frame": 6, "vision_config": {"force_image_size": 140}},
}  # fmt: skip
"""Family -> settings of the tiny model that no part says."""


def assembled(family: str, folder: Path) -> tuple[Any, ArcVideoForConditionalGeneration]:
    """Return transformers' model of a base directory and ours, assembled from it and a Whisper encoder."""
    theirs = {"arc_hunyuan_1b": hunyuan_ocr, "arc_qwen": qwen}[family](folder / "base")
    ours, _ = assemble(folder / "base", whisper(folder / "whisper"), family=family, settings=SIZES[family])
    return theirs, ours.requires_grad_(True)
