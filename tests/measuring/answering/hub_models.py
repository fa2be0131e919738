"""Tiny directories of video models of other makers, as transformers itself writes them: weights and processor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import decoders as decoding
from tokenizers import trainers as training

from tests.measuring.answering import sketch as sketch_code
from tests.measuring.answering.sketch.configuration_sketch import SketchConfig
from tests.measuring.answering.sketch.modeling_sketch import SketchForConditionalGeneration

VISION = ("<|vision_start|>", "<|vision_end|>")
MARKS = {
    "qwen2_5_vl": {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    "qwen2_5_omni": {
        "image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "audio_token": "<|AUDIO|>",
        "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
    },
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'video' %}VIDEO{% elif part.type == 'audio' %}AUDIO{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZE = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}  # fmt: skip
SIGHT = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "window_size": 56,
    "fullatt_block_indexes": [1],
}  # fmt: skip
HEARING = {
    "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "num_mel_bins": 80,
    "output_dim": 64,
}  # fmt: skip


def tokenizer(kind: str) -> Any:
    """Return a byte tokenizer with the marks of a kind of model."""
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoding.ByteLevel()
    made.train_from_iterator(["red blue"], training.BpeTrainer(
        vocab_size=256, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    ))  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=MARKS[kind]
    )
    fast.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", *VISION]}, replace_extra_special_tokens=False
    )
    return fast


def qwen_vl(out: Path) -> Path:
    """Write a Qwen2.5-VL directory: it sees and does not hear."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
    )

    words = tokenizer("qwen2_5_vl")
    known = words.get_vocab()
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(words)},
        vision_config={**SIGHT, "tokens_per_second": 2},
        image_token_id=known["<|image_pad|>"], video_token_id=known["<|video_pad|>"],
        vision_start_token_id=known[VISION[0]], vision_end_token_id=known[VISION[1]],
    )  # fmt: skip
    loud(Qwen2_5_VLForConditionalGeneration(config)).save_pretrained(out)
    template = TEMPLATE.replace("VIDEO", f"{VISION[0]}<|video_pad|>{VISION[1]}")
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(size=SIZE),
        video_processor=Qwen2VLVideoProcessor(size=SIZE),
        tokenizer=words,
        chat_template=template,
    ).save_pretrained(out)
    return out


def qwen_omni(out: Path) -> Path:
    """Write a Qwen2.5-Omni directory, its talking half included: it sees and hears."""
    from transformers import (
        Qwen2_5OmniConfig,
        Qwen2_5OmniForConditionalGeneration,
        Qwen2_5OmniProcessor,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    words = tokenizer("qwen2_5_omni")
    known = words.get_vocab()
    marks = MARKS["qwen2_5_omni"]
    torch.manual_seed(0)
    thinker = {
        "text_config": {**TEXT, "vocab_size": len(words)}, "vision_config": SIGHT, "audio_config": HEARING,
        **{f"{name}_token_id": known[marks[f"{name}_token"]] for name in ("image", "video", "audio")},
        **{f"{name}_token_index": known[marks[f"{name}_token"]] for name in ("image", "video", "audio")},
        "vision_start_token_id": known[marks["vision_bos_token"]],
        "vision_end_token_id": known[marks["vision_eos_token"]],
        "audio_start_token_id": known[marks["audio_bos_token"]], "audio_end_token_id": known[marks["audio_eos_token"]],
        "position_id_per_seconds": 25,
    }  # fmt: skip
    talker = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "embedding_size": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    voice = {
        "dit_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16,
                       "ff_mult": 1, "emb_dim": 16, "enc_dim": 16, "enc_emb_dim": 16, "enc_channels": [16] * 5},
        "bigvgan_config": {"upsample_initial_channel": 64},
    }  # fmt: skip
    config = Qwen2_5OmniConfig(thinker_config=thinker, talker_config=talker, token2wav_config=voice)
    config.enable_audio_output = False
    loud(Qwen2_5OmniForConditionalGeneration(config)).save_pretrained(out)
    template = TEMPLATE.replace("VIDEO", "<|vision_bos|><|VIDEO|><|vision_eos|>")
    template = template.replace("AUDIO{%", "<|audio_bos|><|AUDIO|><|audio_eos|>{%")
    Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessorPil(size=SIZE),
        video_processor=Qwen2VLVideoProcessor(size=SIZE),
        feature_extractor=WhisperFeatureExtractor(feature_size=80, chunk_length=30),
        tokenizer=words,
        chat_template=template,
    ).save_pretrained(out)
    return out


def loud(model: torch.nn.Module) -> Any:
    """Give weights values under which what is seen and heard shows in the answers."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return model.eval()


def sketch(out: Path) -> Path:
    """Write a directory whose classes are files in it, as those of Keye-VL are."""
    words = tokenizer("qwen2_5_vl")
    words.chat_template = TEMPLATE.replace("VIDEO", f"{VISION[0]}<|video_pad|>{VISION[1]}")
    known = words.get_vocab()
    torch.manual_seed(0)
    config = SketchConfig(
        video_token_id=known["<|video_pad|>"], hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=len(words), eos_token_id=known["<|im_end|>"],
        pad_token_id=known["<|endoftext|>"], tie_word_embeddings=False,
    )  # fmt: skip
    loud(SketchForConditionalGeneration(config)).save_pretrained(out)
    words.save_pretrained(out)
    place = "modeling_sketch.SketchForConditionalGeneration"
    classes = {"AutoConfig": "configuration_sketch.SketchConfig", "AutoModel": place, "AutoModelForCausalLM": place}
    readers = {
        "AutoProcessor": "processing_sketch.SketchProcessor",
        "AutoImageProcessor": "image_processing_sketch.SketchImageProcessor",
    }
    written = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**written, "auto_map": classes}))
    (out / "preprocessor_config.json").write_text(
        json.dumps({"processor_class": "SketchProcessor", "auto_map": readers, "patch": 4, "cells": 4})
    )
    # As published ones have: answers are drawn unless something says otherwise.
    (out / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "eos_token_id": config.eos_token_id})
    )
    for path in Path(sketch_code.__file__).parent.glob("*_sketch.py"):
        shutil.copy(path, out)
    return out
