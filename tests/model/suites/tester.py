"""Our classes as transformers' common suite of models asks for them. Runs among its tests, not among ours."""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

import arcvideo  # noqa: F401  registers the classes
from arcvideo.model.modeling import ArcVideoForConditionalGeneration

from ...generation.test_utils import GenerationTesterMixin  # type: ignore[import-not-found]
from ...test_modeling_common import ModelTesterMixin, ids_tensor  # type: ignore[import-not-found]

TEXT = (
    "the suite watches the first layer, which is the vision tower's: these inputs are text; test_transformers.py has it"
)


class Tester:
    """A tiny model of a family and a batch of text."""

    batch_size, seq_length, is_training = 3, 7, True
    num_attention_heads = 4

    def __init__(self, family: str) -> None:
        self.folder = Path(os.environ["ARCVIDEO_TINY"]) / family
        self.hidden_size = self.get_config().text_config.hidden_size
        self.num_hidden_layers = self.get_config().text_config.num_hidden_layers

    def get_config(self) -> Any:
        return AutoConfig.from_pretrained(self.folder)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        ids = ids_tensor([self.batch_size, self.seq_length], 50)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Common(GenerationTesterMixin, ModelTesterMixin):  # type: ignore[misc]
    """What holds for every family."""

    all_model_classes = (ArcVideoForConditionalGeneration,)
    all_generative_model_classes = (ArcVideoForConditionalGeneration,)
    pipeline_model_mapping: dict[str, Any] = {}  # noqa: RUF012
    has_attentions = True

    def _prepare_for_class(self, inputs: Any, model_class: Any, return_labels: bool = False) -> Any:
        prepared = super()._prepare_for_class(inputs, model_class, return_labels=return_labels)
        # The suite knows which classes take labels by their names, and ours is not among them.
        return prepared | ({"labels": prepared["input_ids"].clone()} if return_labels else {})

    @unittest.skip("towers, decoder and head are parts of one class: there is no model without a head")
    def test_model_base_model_prefix(self) -> None: ...

    @unittest.skip(TEXT)
    def test_training_gradient_checkpointing(self) -> None: ...

    @unittest.skip(TEXT)
    def test_training_gradient_checkpointing_use_reentrant_false(self) -> None: ...

    @unittest.skip(TEXT)
    def test_training_gradient_checkpointing_use_reentrant_true(self) -> None: ...

    @unittest.skip("a directory that lacks weights is refused by name: the suite expects random ones in their place")
    def test_model_weights_reload_no_missing_tied_weights(self) -> None: ...


class ArcHunyuanTest(Common, unittest.TestCase):
    """The first family, whose decoder is ours."""

    def setUp(self) -> None:
        self.model_tester = Tester("arc_hunyuan")

    @unittest.skip("the head of this family is its embedding: untied settings are refused")
    def test_load_save_without_tied_weights(self) -> None: ...

    @unittest.skip("the head of this family is its embedding: untied settings are refused")
    def test_resize_embeddings_untied(self) -> None: ...

    @unittest.skip("the head of this family is its embedding: untied settings are refused")
    def test_resize_embeddings_untied_no_reinit_on_post_init(self) -> None: ...


class ArcQwenTest(Common, unittest.TestCase):
    """The family whose decoder is transformers' own, with our attention rule; its head may be untied."""

    def setUp(self) -> None:
        self.model_tester = Tester("arc_qwen")
